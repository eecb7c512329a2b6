"""Batches for attention backends: ragged lengths, block tables that jump, poison where nothing may be read."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from core.batch import AttentionMetadata, ForwardBatch
from core.interfaces.attention import AttentionSpec


@dataclass
class Case:
    spec: AttentionSpec
    lengths: list[tuple[int, int]]
    """(new tokens, earlier context) of each request, decodes first"""
    block_size: int = 16
    padding: int = 0
    """Rows that only fill a captured graph up (decodes only)."""
    seed: int = 0
    poison: bool = True
    """NaN in every cache entry that no request owns"""
    common: int = 0
    """So many first tokens of every request (whole blocks) lie in the same blocks"""
    extra: dict = field(default_factory=dict)


@dataclass
class Built:
    batch: ForwardBatch
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    cache: tuple[torch.Tensor, torch.Tensor]
    filled: tuple[torch.Tensor, torch.Tensor]
    """The cache as it must look after the step"""


def build(case: Case, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Built:
    g = torch.Generator().manual_seed(case.seed)
    spec, bs = case.spec, case.block_size
    new = np.array([n for n, _ in case.lengths] + [1] * case.padding, np.int32)
    lens = np.array([n + c for n, c in case.lengths] + [0] * case.padding, np.int32)
    blocks = [-(-int(n) // bs) for n in lens]
    order = torch.randperm(sum(blocks) + 3, generator=g).tolist()
    table = torch.zeros(len(lens), max(max(blocks), 1) + 2, dtype=torch.int32)
    # entries behind a request's end are stale: they name blocks of others
    table[:] = torch.randint(0, len(order), table.shape, generator=g, dtype=torch.int32)
    shared = [order.pop() for _ in range(case.common // bs)]
    for i, count in enumerate(blocks):
        own = [order.pop() for _ in range(count - len(shared))] if count else []
        table[i, :count] = torch.tensor([*shared, *own] if count else [], dtype=torch.int32)
    shape = (sum(blocks) + 3, bs, spec.num_kv_heads, spec.head_dim)
    fill = float("nan") if case.poison else 0.0
    cache = tuple(torch.full(shape, fill, dtype=dtype) for _ in range(2))
    total = int(new.sum())
    q = torch.randn(total, spec.num_heads, spec.head_dim, generator=g).to(dtype)
    k, v = (torch.randn(total, spec.num_kv_heads, spec.head_dim, generator=g).to(dtype) for _ in range(2))
    slots = torch.full((total,), -1, dtype=torch.int64)
    positions = torch.zeros(total, dtype=torch.int64)
    start = 0
    for i in range(len(lens)):
        n, length = int(new[i]), int(lens[i])
        if length:
            at = torch.arange(length)
            place = table[i, at // bs].long() * bs + at % bs
            earlier = place[: length - n]
            for c in cache:
                c.view(-1, *shape[2:])[earlier] = torch.randn(len(earlier), *shape[2:], generator=g).to(dtype)
            slots[start : start + n] = place[length - n :]
            positions[start : start + n] = at[length - n :]
        start += n
    filled = tuple(c.clone() for c in cache)
    kept = slots >= 0
    for c, t in zip(filled, (k, v), strict=True):
        c.view(-1, *shape[2:])[slots[kept]] = t[kept]
    meta = AttentionMetadata(
        query_start_loc=torch.from_numpy(np.concatenate([[0], np.cumsum(new)]).astype(np.int32)).to(device),
        seq_lens=torch.from_numpy(lens).to(device),
        block_table=table.to(device),
        slot_mapping=slots.to(device),
        num_requests=len(lens),
        num_decodes=int(np.searchsorted(new > 1, True)),
        num_tokens=total,
        max_query_len=int(new.max()),
        max_seq_len=int(lens.max()),
        query_lens_host=new,
        seq_lens_host=lens,
        block_size=bs,
        common_prefix=torch.tensor([case.common], dtype=torch.int32, device=device) if case.common else None,
    )
    batch = ForwardBatch(torch.zeros(total, dtype=torch.int64, device=device), positions.to(device), meta, [])
    to = lambda pair: tuple(t.to(device) for t in pair)  # noqa: E731
    return Built(batch, q.to(device), k.to(device), v.to(device), to(cache), to(filled))


def spec(heads: int = 4, kv_heads: int = 2, dim: int = 16, **more: object) -> AttentionSpec:
    return AttentionSpec(heads, kv_heads, dim, dim**-0.5, **more)  # type: ignore[arg-type]
