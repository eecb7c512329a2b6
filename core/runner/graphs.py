"""CUDA graphs of whole steps: one a padded size, replayed for every plan that fits.

Two kinds: decodes (every request brings one token; the size counts requests) and mixed steps (the size counts tokens).
A graph holds the preparation of the inputs from rows and counts, the forward pass and, for small decodes, the logits,
so a step costs the host one small copy and one launch; mixed steps beyond MIXED_SIZES give each request's last state
alone. Lengths and block tables live in device memory; padding is rows of length 0 and tokens that are written nowhere.
Knows nothing of scheduling or sampling.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch

from core.batch import AttentionMetadata, ForwardBatch, StepPlan
from core.interfaces.attention import AttentionBackend
from core.interfaces.model import Model
from core.kernels.batch import prepare_decodes, prepare_mixed
from core.runner.graph_sizes import MIXED_SIZES, decode_sizes, mixed_sizes

MAX_LOGITS_BATCH = 64
"""Above it the logits are not in the graph: each graph would keep a large tensor of its own for them."""
MIN_SHARED_BATCH = 8
"""Fewer requests do not gain from reading a common prefix once."""


@dataclass(slots=True)
class CapturedStep:
    """One graph with its buffers."""

    graph: torch.cuda.CUDAGraph
    packed: torch.Tensor
    """int32: where the host's copy goes"""
    num_requests: int
    """Rows of requests in it"""
    hidden: torch.Tensor
    """Of every token, or (in large mixed steps) of each request's last"""
    logits: torch.Tensor | None


class StepGraphs:
    """Owns the static buffers and the graphs. `capture` once, before the first step; then `run` for each plan."""

    def __init__(
        self,
        model: Model,
        backend: AttentionBackend,
        caches: Sequence[Any],
        token_ids: torch.Tensor,
        block_table: torch.Tensor,
        block_size: int,
        max_tokens: int,
        shared_prefixes: bool,
        free_tokens: int = MIXED_SIZES[-1],
    ) -> None:
        """token_ids, block_table: the rows on the device (core/runner/input_batch.py). max_tokens: the largest size.

        free_tokens: up to this size padding costs nothing, since the host would take longer without a graph.
        shared_prefixes: capture decodes a second time, for requests that begin with the same blocks.
        """
        self._model, self._caches = model, caches
        self._backend = cast(Any, backend)  # with the three methods of mixed_capture
        self._token_ids, self._block_table, self._block_size = token_ids, block_table, block_size
        num_rows, device = token_ids.shape[0], token_ids.device
        self._free_tokens = free_tokens
        self.decode_sizes = decode_sizes(min(max_tokens, num_rows))
        self.shared_sizes = [s for s in self.decode_sizes if s >= MIN_SHARED_BATCH] if shared_prefixes else []
        mixed = backend.capabilities.mixed_capture
        self.mixed_sizes = mixed_sizes(max_tokens) if mixed else []
        most = max([*self.decode_sizes, *self.mixed_sizes])
        rows = min(num_rows, most)
        words = 3 * rows + 2 + (self._backend.graph_words(most) if mixed else 0)
        self._packed = torch.zeros(max(words, 2 * most + 1), dtype=torch.int32, device=device)
        self._input_ids, self._positions, self._slots = torch.zeros(3, most, dtype=torch.int64, device=device)
        self._seq_lens, self._decode_lens = torch.zeros(2, rows, dtype=torch.int32, device=device)
        self._starts = torch.arange(rows + 1, dtype=torch.int32, device=device)
        self._table = torch.zeros(rows, block_table.shape[1], dtype=torch.int32, device=device)
        self._decodes: dict[tuple[int, bool], CapturedStep] = {}
        self._mixed: dict[int, CapturedStep] = {}
        self._decode_size_of = np.searchsorted(self.decode_sizes, np.arange(self.decode_sizes[-1] + 1))

    # ---- capturing

    def _metadata(self, num_requests: int, num_tokens: int, **more: Any) -> AttentionMetadata:
        longest = self._table.shape[1] * self._block_size
        ones = np.ones(num_requests, np.int32)
        return AttentionMetadata(
            seq_lens=self._seq_lens[:num_requests],
            block_table=self._table[:num_requests],
            slot_mapping=self._slots[:num_tokens],
            num_requests=num_requests,
            num_decodes=num_requests,
            num_tokens=num_tokens,
            max_seq_len=longest,
            query_lens_host=ones,
            seq_lens_host=ones * longest,
            block_size=self._block_size,
            **more,
        )

    def _forward_batch(self, meta: AttentionMetadata) -> ForwardBatch:
        return ForwardBatch(self._input_ids[: meta.num_tokens], self._positions[: meta.num_tokens], meta, self._caches)

    def _decode(
        self, packed: torch.Tensor, size: int, shared: bool
    ) -> tuple[torch.Tensor, Callable[[], tuple[Any, Any]]]:
        """The step of `size` decodes: where its packed copy goes, and what to capture."""
        packed = packed[: 2 * size + 1]
        packed[: 2 * size] = -1
        packed[2 * size :] = 0
        meta = self._metadata(
            size,
            size,
            query_start_loc=self._starts[: size + 1],
            max_query_len=1,
            common_prefix=packed[2 * size :] if shared else None,
        )
        batch = self._forward_batch(meta)
        self._backend.plan(batch)

        def step() -> tuple[Any, Any]:
            prepare_decodes(
                packed[: 2 * size].view(2, size),
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
            return hidden, self._model.logits(hidden) if size <= MAX_LOGITS_BATCH else None

        return packed, step

    def _mix(self, packed: torch.Tensor, size: int) -> tuple[torch.Tensor, Callable[[], tuple[Any, Any]]]:
        rows = min(self._table.shape[0], size)
        own = 3 * rows + 2
        packed = packed[: own + self._backend.graph_words(size)]
        packed.copy_(torch.from_numpy(self._pack_mixed(rows, size, None)))
        meta = self._metadata(
            rows,
            size,
            query_start_loc=packed[2 * rows : 3 * rows + 1],
            max_query_len=size,
            decode_lens=self._decode_lens[:rows],
        )
        meta.state = self._backend.graph_state(packed[own:])
        batch = self._forward_batch(meta)
        only_last = size > max(rows, MIXED_SIZES[-1])

        def step() -> tuple[Any, Any]:
            prepare_mixed(
                packed,
                rows,
                self._token_ids,
                self._block_table,
                self._block_size,
                batch.input_ids,
                batch.positions,
                meta.slot_mapping,
                meta.seq_lens,
                self._decode_lens[:rows],
                meta.block_table,
            )
            if only_last:
                batch.wanted = (meta.query_start_loc[1:] - 1).clamp_(min=0).long()
            return self._model.forward(batch), None

        return packed, step

    def _kinds(self) -> list[tuple[str, int, bool]]:
        kinds = [("mixed", s, False) for s in self.mixed_sizes] + [("decode", s, False) for s in self.decode_sizes]
        kinds += [("decode", s, True) for s in self.shared_sizes]
        return sorted(kinds, key=lambda k: -k[1])

    def _make(self, packed: torch.Tensor, kind: str, size: int, shared: bool) -> tuple[torch.Tensor, Callable[[], Any]]:
        return self._mix(packed, size) if kind == "mixed" else self._decode(packed, size, shared)

    def compilations(self) -> list[Callable[[], object]]:
        """Jobs that between them compile all kernels of all graphs."""
        return [lambda k=kind: self._make(self._packed.clone(), *k)[1]() for kind in self._kinds()]  # type: ignore[misc]

    @torch.inference_mode()
    def capture(self, progress: Callable[[int, int], None] | None = None) -> int:
        """Capture every size, the largest first, so that the smaller ones find their memory in its pool.

        progress(done, of). -> how many. Raises what the model or the backend raises if it cannot be captured.
        """
        kinds = self._kinds()
        gc.collect()
        gc.freeze()  # torch collects garbage before each capture; what lives now need not be looked at again
        pool = torch.cuda.graph_pool_handle()
        stream = torch.cuda.Stream(self._token_ids.device)
        try:
            for done, (kind, size, shared) in enumerate(kinds):
                packed, step = self._make(self._packed, kind, size, shared)
                stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(stream):
                    step()  # lets libraries make their handles
                torch.cuda.current_stream().wait_stream(stream)
                torch.cuda.synchronize()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=pool, stream=stream):
                    hidden, logits = step()
                requests = min(self._table.shape[0], size)
                captured = CapturedStep(graph, packed, requests, hidden, logits)
                if kind == "mixed":
                    self._mixed[size] = captured
                else:
                    self._decodes[size, shared] = captured
                if progress is not None:
                    progress(done + 1, len(kinds))
        finally:
            gc.unfreeze()
        return len(kinds)

    # ---- running

    def run(self, plan: StepPlan, all_states: bool = False) -> tuple[torch.Tensor, torch.Tensor | None] | None:
        """Hidden states and, for small decodes, logits [R, vocab]; valid until the next run. None: no graph serves the plan.

        The states are those of all tokens, [T, hidden], or, unless `all_states`, of each request's last, [R, hidden].
        """
        count = len(plan.rows)
        if count <= self.decode_sizes[-1] and bool((plan.num_scheduled == 1).all()):
            size = self.decode_sizes[self._decode_size_of[count]]
            packed = np.full(2 * size + 1, -1, np.int32)
            packed[:count] = plan.rows
            packed[size : size + count] = plan.num_computed
            packed[2 * size] = plan.num_common
            step = self._decodes.get((size, plan.num_common > 0)) or self._decodes[size, False]
            tokens = count
        else:
            tokens = plan.num_tokens
            wanted = next((s for s in self.mixed_sizes if s >= tokens), None)
            if wanted is None or (wanted > self._free_tokens and wanted - tokens > tokens // 8):
                return None
            step = self._mixed[wanted]
            only_last = step.hidden.shape[0] < wanted
            if count > step.num_requests or (only_last and all_states):
                return None
            tokens = count if only_last else tokens
            filled = self._pack_mixed(step.num_requests, wanted, plan)
            if filled is None:
                return None
            packed = filled
        step.packed.copy_(torch.from_numpy(packed).pin_memory(), non_blocking=True)
        step.graph.replay()
        return step.hidden[:tokens], None if step.logits is None else step.logits[:count]

    def _pack_mixed(self, rows: int, size: int, plan: StepPlan | None) -> np.ndarray | None:
        """What `prepare_mixed` reads, and behind it what the backend wants. None: the backend has no room for the plan.

        No plan: everything is padding.
        """
        own = 3 * rows + 2
        packed = np.zeros(own + self._backend.graph_words(size), np.int32)
        packed[:rows] = -1
        counts = seq_lens = np.zeros(0, np.int32)
        decodes = 0
        if plan is not None:
            count = len(plan.rows)
            counts, seq_lens = plan.num_scheduled, plan.num_computed + plan.num_scheduled
            decodes = int(np.searchsorted(counts > 1, True))
            packed[:count] = plan.rows
            packed[rows : rows + count] = plan.num_computed
            np.cumsum(counts, out=packed[2 * rows + 1 : 2 * rows + 1 + count])
            packed[2 * rows + 1 + count : own - 1] = packed[2 * rows + count]
        packed[own - 1] = decodes
        fits = self._backend.graph_fill(packed[own:], counts[decodes:], seq_lens[decodes:], decodes)
        return packed if fits else None
