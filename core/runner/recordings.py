"""Decode steps on a CPU, recorded: what CUDA graphs are on a GPU.

A step of few decodes is some sixty kernel calls, always the same ones with the same addresses; of a small model's step the
Python around them is the larger half, and the threads that meet and part at each of them most of the rest. The first step of
each size runs as usual and is written down; the next ones are one call, from the rows' tokens to the likeliest next ones,
by one team of threads. A model of which anything but kernels and views takes part is not recorded: it runs as it did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from core.batch import AttentionMetadata, ForwardBatch, StepPlan
from core.interfaces.attention import AttentionBackend
from core.interfaces.model import Model
from core.kernels.cpu import jit
from core.kernels.cpu.batch import prepare_decodes
from core.kernels.cpu.sampling import greedy
from core.runner.input_batch import InputBatch

MAX_ROWS = 16
"""Larger steps are long enough for Python not to matter, and so many rows' activations of all layers are few beside the weights."""
_ALLOCATIONS = frozenset({"empty", "empty_like"})
_VIEWS = frozenset({
    *("view", "view_as", "flatten", "unflatten", "reshape", "contiguous", "split", "chunk", "narrow", "select", "unbind"),
    *("transpose", "permute", "squeeze", "unsqueeze", "expand", "detach", "__getitem__", "t", "to", "float"),
})  # fmt: skip
"""Whose result may be the same memory; whether it is, is looked at."""
_QUESTIONS = frozenset({
    *("__get__", "data_ptr", "numel", "size", "dim", "stride", "is_contiguous", "element_size", "storage_offset"),
    *("__len__", "is_floating_point"),
})  # fmt: skip
"""What changes nothing."""


@dataclass(frozen=True, slots=True)
class Recording:
    """One size of step."""

    program: jit.Program
    """Its last call chooses the tokens."""
    hidden: torch.Tensor
    logits: torch.Tensor


class _Watch(TorchFunctionMode):
    """Gives what the step allocates out of buffers that all sizes share, and notes whether torch does anything else."""

    def __init__(self, buffers: list[torch.Tensor], count: int, most: int) -> None:
        super().__init__()
        self._buffers, self._count, self._most = buffers, count, most
        self._given = 0
        self.others: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run it."""
        name = func.__name__
        if name in _QUESTIONS:
            return func(*args, **(kwargs or {}))
        if kwargs or not args or name not in _VIEWS | _ALLOCATIONS:
            return self._note(func, args, kwargs)
        if name in _ALLOCATIONS:
            shape = args[0].shape if isinstance(args[0], torch.Tensor) else args[0]
            plain = name == "empty" or (args[0].is_contiguous() and args[0].dtype is torch.float32)
            if len(args) == 1 and isinstance(shape, tuple) and shape[:1] == (self._count,) and plain:
                return self._give(tuple(shape))
            return self._note(func, args, kwargs)
        result = func(*args)
        whose = args[0].untyped_storage().data_ptr()
        parts = result if isinstance(result, tuple | list) else (result,)
        if any(part.untyped_storage().data_ptr() != whose for part in parts):
            self.others.append(name)
        return result

    def _note(self, func: Any, args: Any, kwargs: Any) -> Any:
        self.others.append(func.__name__)
        return func(*args, **(kwargs or {}))

    def _give(self, shape: tuple[int, ...]) -> torch.Tensor:
        """The next buffer's first rows: in a step of any size it is the same allocation that gets it."""
        if self._given == len(self._buffers):
            self._buffers.append(torch.empty((self._most, *shape[1:])))
        buffer = self._buffers[self._given]
        self._given += 1
        if buffer.shape[1:] != shape[1:]:
            self.others.append("empty")  # another one than in the step before
            return torch.empty(shape)
        return buffer[: self._count]


class StepRecordings:
    """Instead of `forward_batch` and the model, for steps of decodes alone. Where dispatch.on_cpu() holds."""

    def __init__(self, model: Model, backend: AttentionBackend, caches: Sequence[Any], rows: InputBatch) -> None:
        """backend: one with capabilities.graph_capture"""
        self._model, self._backend, self._caches = model, backend, caches
        self._block_size = rows.block_size
        self._most = min(MAX_ROWS, rows.token_ids.shape[0])
        self._token_ids, self._block_table = rows.token_ids, rows.block_table
        self._input_ids, self._positions, self._slots = torch.zeros(3, self._most, dtype=torch.int64)
        self._seq_lens = torch.zeros(self._most, dtype=torch.int32)
        self._table = torch.zeros(self._most, rows.block_table.shape[1], dtype=torch.int32)
        self._packed, self._found = torch.zeros(2, 2, self._most, dtype=torch.int32)
        self._packed_host, self._found_host = self._packed.numpy(), self._found.numpy()
        self._recordings: dict[int, Recording] = {}
        self._buffers: list[torch.Tensor] = []
        self.reason = ""
        """Why nothing is recorded any more."""

    def replay(self, plan: StepPlan, choose: bool) -> Recording | None:
        """Run the plan; its hidden states and logits are valid until the next call. None: nothing is recorded for it.

        choose: write the likeliest token of each row into its place. `chosen` has them.
        """
        count = len(plan.rows)
        recording = self._recordings.get(count) if plan.all_decode else None
        if recording is not None:
            self._packed_host[0, :count] = plan.rows
            self._packed_host[1, :count] = plan.num_computed
            recording.program.run(0 if choose else 1)
        return recording

    def chosen(self, count: int) -> np.ndarray:
        """int32 [2, count]: tokens, and whether their logits are finite. The caller's own."""
        return self._found_host[:, :count].copy()

    def run(self, plan: StepPlan, all_states: bool = False) -> tuple[torch.Tensor, torch.Tensor] | None:
        """-> hidden states and logits of all rows, valid until the next call; None: it is no step for here.

        all_states: as for graphs; a decode has one state.
        """
        recording = self.replay(plan, False)
        if recording is not None:
            return recording.hidden, recording.logits
        if not plan.all_decode or len(plan.rows) > self._most or self.reason:
            return None
        return self._record(plan)

    def _record(self, plan: StepPlan) -> tuple[torch.Tensor, torch.Tensor]:
        count = len(plan.rows)
        self._packed_host[0, :count] = plan.rows
        self._packed_host[1, :count] = plan.num_computed
        longest = self._table.shape[1] * self._block_size
        ones = np.ones(count, np.int32)
        meta = AttentionMetadata(
            query_start_loc=torch.arange(count + 1, dtype=torch.int32),
            seq_lens=self._seq_lens[:count],
            block_table=self._table[:count],
            slot_mapping=self._slots[:count],
            num_requests=count,
            num_decodes=count,
            num_tokens=count,
            max_query_len=1,
            max_seq_len=longest,
            query_lens_host=ones,
            seq_lens_host=ones * longest,
            block_size=self._block_size,
        )
        batch = ForwardBatch(self._input_ids[:count], self._positions[:count], meta, self._caches)
        self._backend.plan(batch)
        with jit.recording() as calls:
            prepare_decodes(
                self._packed,
                self._token_ids,
                self._block_table,
                self._block_size,
                batch.input_ids,
                batch.positions,
                meta.slot_mapping,
                meta.seq_lens,
                meta.block_table,
            )
            with _Watch(self._buffers, count, self._most) as watch:
                hidden = self._model.forward(batch)
                logits = self._model.logits(hidden)
            # whoever samples this step writes over it
            greedy(logits, self._packed[0], self._packed[1], self._token_ids, self._found, later=1)
        if watch.others:
            self.reason = f"the model's step does {watch.others[0]}, which is no kernel"
            return hidden, logits
        if not logits.is_contiguous() or logits.dtype is not torch.float32:
            self.reason = f"the model's logits are {logits.dtype}, strides {logits.stride()}"
            return hidden, logits
        self._recordings[count] = Recording(jit.Program(calls), hidden, logits)
        return hidden, logits
