"""CUDA graphs of the decode step: one a padded batch size, replayed whenever every request brings one token.

A graph holds the preparation of the inputs (from rows and counts), the forward pass and, for small batches, the logits,
so a step costs the host one small copy and one launch. Lengths and block tables live in device memory; padding is rows
of length 0 that write nothing. Knows nothing of scheduling or sampling.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from core.batch import AttentionMetadata, ForwardBatch, StepPlan
from core.interfaces.attention import AttentionBackend
from core.interfaces.model import Model
from core.kernels.batch import prepare_decodes

MAX_LOGITS_BATCH = 64
"""Above it the logits are not in the graph: each graph would keep a large tensor of its own for them."""


def graph_sizes(most: int) -> list[int]:
    """Padded batch sizes, ascending: close together where a step is short. `most` is always one of them."""
    sizes = {1, 2, 4, *range(8, 65, 8), *range(80, 257, 16), *range(288, 1025, 32)}
    return sorted({s for s in sizes if s < most} | {most})


@dataclass(slots=True)
class CapturedStep:
    graph: torch.cuda.CUDAGraph
    packed: torch.Tensor
    """int32 [2, size]: where the host's copy goes"""
    hidden: torch.Tensor
    logits: torch.Tensor | None


class DecodeGraphs:
    """Owns the static buffers and the graphs. `capture` once, before the first step; then `run` for plans that fit."""

    def __init__(
        self,
        model: Model,
        backend: AttentionBackend,
        caches: Sequence[Any],
        token_ids: torch.Tensor,
        block_table: torch.Tensor,
        block_size: int,
        max_batch: int,
    ) -> None:
        """token_ids, block_table: the rows on the device (core/runner/input_batch.py)."""
        self._model, self._backend, self._caches = model, backend, caches
        self._token_ids, self._block_table, self._block_size = token_ids, block_table, block_size
        self.sizes = graph_sizes(min(max_batch, token_ids.shape[0]))
        device, most, blocks = token_ids.device, self.sizes[-1], block_table.shape[1]
        self._packed = torch.full((2 * most,), -1, dtype=torch.int32, device=device)
        self._input_ids, self._positions, self._slots = torch.zeros(3, most, dtype=torch.int64, device=device)
        self._seq_lens = torch.zeros(most, dtype=torch.int32, device=device)
        self._starts = torch.arange(most + 1, dtype=torch.int32, device=device)
        self._table = torch.zeros(most, blocks, dtype=torch.int32, device=device)
        self._steps: dict[int, CapturedStep] = {}
        self._size_of = np.searchsorted(self.sizes, np.arange(most + 1))

    def _batch(self, size: int) -> ForwardBatch:
        longest = self._table.shape[1] * self._block_size
        ones = np.ones(size, np.int32)
        attention = AttentionMetadata(
            query_start_loc=self._starts[: size + 1],
            seq_lens=self._seq_lens[:size],
            block_table=self._table[:size],
            slot_mapping=self._slots[:size],
            num_requests=size,
            num_decodes=size,
            num_tokens=size,
            max_query_len=1,
            max_seq_len=longest,
            query_lens_host=ones,
            seq_lens_host=ones * longest,
            block_size=self._block_size,
        )
        return ForwardBatch(self._input_ids[:size], self._positions[:size], attention, self._caches)

    def _step(self, packed: torch.Tensor, batch: ForwardBatch) -> tuple[torch.Tensor, torch.Tensor | None]:
        meta = batch.attention
        prepare_decodes(
            packed,
            self._token_ids,
            self._block_table,
            self._block_size,
            batch.input_ids,
            batch.positions,
            meta.slot_mapping,
            meta.seq_lens,
            meta.block_table,
        )
        hidden = self._model.forward(batch)
        return hidden, self._model.logits(hidden) if meta.num_requests <= MAX_LOGITS_BATCH else None

    @torch.inference_mode()
    def capture(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Capture every size, the largest first, so that the smaller ones find their memory in its pool.

        progress(done, of). Raises what the model or the backend raises if it cannot be captured.
        """
        gc.collect()
        gc.freeze()  # torch collects garbage before each capture; what lives now need not be looked at again
        pool = torch.cuda.graph_pool_handle()
        stream = torch.cuda.Stream(self._token_ids.device)
        try:
            for done, size in enumerate(reversed(self.sizes)):
                packed = self._packed[: 2 * size].view(2, size)
                packed.fill_(-1)
                batch = self._batch(size)
                self._backend.plan(batch)
                stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(stream):
                    self._step(packed, batch)  # compiles kernels and lets libraries make their handles
                torch.cuda.current_stream().wait_stream(stream)
                torch.cuda.synchronize()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=pool, stream=stream):
                    hidden, logits = self._step(packed, batch)
                self._steps[size] = CapturedStep(graph, packed, hidden, logits)
                if progress is not None:
                    progress(done + 1, len(self.sizes))
        finally:
            gc.unfreeze()

    def fits(self, plan: StepPlan) -> bool:
        """One new token of every request, and no more requests than the largest graph has rows."""
        return len(plan.rows) <= self.sizes[-1] and bool((plan.num_scheduled == 1).all()) and bool(self._steps)

    def run(self, plan: StepPlan) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Hidden states [R, hidden] and, for small batches, logits [R, vocab]; valid until the next run."""
        count = len(plan.rows)
        size = self.sizes[self._size_of[count]]
        step = self._steps[size]
        packed = np.full((2, size), -1, np.int32)
        packed[0, :count] = plan.rows
        packed[1, :count] = plan.num_computed
        step.packed.copy_(torch.from_numpy(packed).pin_memory(), non_blocking=True)
        step.graph.replay()
        return step.hidden[:count], None if step.logits is None else step.logits[:count]
