"""The nouns of a step: what the scheduler plans, what the device runs, what comes back.

StepPlan and StepResult are host side (numpy); ForwardBatch lives on the device (torch, imported lazily by
annotations only). One kind of batch: each request brings `num_scheduled` new tokens, decode is the case 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from core.messages import Logprobs
from core.request import Request

if TYPE_CHECKING:
    import torch  # a type only: planning a step must not load it


@dataclass(frozen=True, slots=True)
class NewRow:
    """A request takes a row: fresh, or back after preemption (then its outputs so far are in token_ids)."""

    row: int
    request: Request
    token_ids: np.ndarray
    """int32: prompt and outputs so far"""


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step, as the scheduler wants it. Arrays are the plan's own; decodes come first."""

    step: int
    rows: np.ndarray
    """int32 [R]: rows of the requests in this step; those with one new token come first"""
    num_scheduled: np.ndarray
    """int32 [R]: new tokens of each"""
    num_computed: np.ndarray
    """int32 [R]: tokens whose keys and values are in the cache before the step"""
    samples: np.ndarray
    """bool [R]: the request's last known token is in this step, so a new one is sampled; never of rows that pool"""
    new_rows: Sequence[NewRow] = ()
    block_updates: np.ndarray = field(default_factory=lambda: np.empty((0, 3), np.int32))
    """int32 [k, 3]: (row, index in the row's block table, block)"""
    block_copies: np.ndarray = field(default_factory=lambda: np.empty((0, 2), np.int32))
    """int32 [k, 2]: (source block, target block), before the step (copy on write)"""
    known_tokens: np.ndarray = field(default_factory=lambda: np.empty((0, 3), np.int32))
    """int32 [k, 3]: (row, position, token) that were not sampled but are known (jump-forward), of rows that have them
    already; the device has all others"""
    num_common: int = 0
    """So many first tokens of every request are in the same blocks (whole blocks, all computed before the step)."""
    all_decode: bool = False
    """Every row brings one token and samples the next."""
    epochs: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    """int64 [R]: who held each row when the plan was made; commit ignores rows that changed hands"""

    @property
    def num_tokens(self) -> int:
        return int(self.num_scheduled.sum())

    @property
    def num_samples(self) -> int:
        return int(self.samples.sum())


@dataclass(frozen=True, slots=True)
class Bitmasks:
    """Allowed tokens of guided requests. Bit j of word i stands for token 32 * i + j."""

    sample_indices: np.ndarray
    """int64 [G]: which of the step's sampled rows (0 is the first True of StepPlan.samples)"""
    bits: np.ndarray
    """int32 [G, ceil(vocab / 32)]"""
    lines: np.ndarray | None = None
    """int32 [1 + G, ceil(vocab / 32)]: a line that allows everything, then `bits`, if they lie together so"""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step sampled, on the host."""

    token_ids: np.ndarray
    """int32 [S], in the order of the rows with StepPlan.samples"""
    logprobs: dict[int, Logprobs] = field(default_factory=dict)
    """row -> the new position, for rows that asked"""
    prompt_logprobs: dict[int, list[Logprobs]] = field(default_factory=dict)
    """row -> this chunk's prompt positions, for rows that asked (the first prompt token has none)"""
    errors: dict[int, str] = field(default_factory=dict)
    """row -> why its sampling failed (non-finite logits); the token of such a row means nothing"""
    embeddings: dict[int, np.ndarray] = field(default_factory=dict)
    """row -> float32 [hidden], for rows that pool and whose prompt ended with this step"""


@dataclass(slots=True)
class AttentionMetadata:
    """Who attends to what. Device tensors may be longer than `num_requests` (padding of a captured graph)."""

    query_start_loc: torch.Tensor
    """int32 [R + 1]: request i owns tokens query_start_loc[i] to query_start_loc[i + 1]"""
    seq_lens: torch.Tensor
    """int32 [R]: keys of each request after this step's tokens are written; 0 for padding"""
    block_table: torch.Tensor
    """int32 [R, max_blocks]"""
    slot_mapping: torch.Tensor
    """int64 [T]: block * block_size + offset of each new token; -1: write nothing (padding)"""
    num_requests: int
    num_decodes: int
    """The first requests with exactly one new token each (host)."""
    num_tokens: int
    max_query_len: int
    max_seq_len: int
    query_lens_host: np.ndarray
    """int32 [R], host copy for backends that run on the CPU"""
    seq_lens_host: np.ndarray
    """int32 [R]"""
    block_size: int
    decode_lens: torch.Tensor | None = None
    """int32 [R], of a captured mixed step, where num_decodes is no host number: seq_lens, but 0 unless a decode"""
    common_prefix: torch.Tensor | None = None
    """int32 [1]: so many first tokens of every request lie in the same blocks and may be read once; None: unknown"""
    state: Any = None
    """Whatever the backend's plan() computed for this step."""


@dataclass(slots=True)
class ForwardBatch:
    """The device's view of a step, handed down through the model as an argument."""

    input_ids: torch.Tensor
    """int64 [T]"""
    positions: torch.Tensor
    """int64 [T]"""
    attention: AttentionMetadata
    caches: Sequence[Any]
    """Per attention layer what the backend's `allocate` made: (keys, values)"""
    wanted: torch.Tensor | None = None
    """int64 [S]: tokens whose hidden states are asked for, fewer than all; a model may return these alone"""
