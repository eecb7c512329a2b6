"""Attention with nothing clever in it: the kit's own reference, and a backend made of it to run models on."""

from __future__ import annotations

from typing import Any

import torch

from core.batch import ForwardBatch
from core.interfaces.attention import AttentionCapabilities, AttentionSpec


def dense_attention(spec: AttentionSpec, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The last tokens of one sequence attend to all of it: float32, one head at a time, no blocks.

    query: [new, num_heads, head_dim]; keys, values: [length, num_kv_heads, head_dim] -> float32, query's shape
    """
    new, length, group = len(query), len(keys), spec.num_heads // spec.num_kv_heads
    at = torch.arange(length, device=query.device)
    distance = at[length - new :, None] - at[None]
    hidden = distance < 0
    if spec.window is not None:
        hidden = hidden | (distance >= spec.window)
    heads = []
    for head in range(spec.num_heads):
        scores = query[:, head].float() @ keys[:, head // group].float().T * spec.scale
        if spec.soft_cap is not None:
            scores = torch.tanh(scores / spec.soft_cap) * spec.soft_cap
        if spec.alibi_slopes is not None:
            scores = scores - spec.alibi_slopes[head] * distance
        heads.append(scores.masked_fill(hidden, float("-inf")).softmax(-1) @ values[:, head // group].float())
    return torch.stack(heads, 1)


class PlainBackend:
    """An attention backend in a page: write by slot, gather by table, attend request by request. Slow and plain."""

    name = "plain"
    capabilities = AttentionCapabilities(
        devices=frozenset({"cpu", "cuda"}),
        dtypes=frozenset({"float32", "bfloat16", "float16"}),
        soft_cap=True,
        alibi=True,
    )

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def allocate(
        self, spec: AttentionSpec, num_blocks: int, block_size: int, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (num_blocks, block_size, spec.num_kv_heads, spec.head_dim)
        return torch.zeros(shape, dtype=dtype, device=self.device), torch.zeros(shape, dtype=dtype, device=self.device)

    def plan(self, batch: ForwardBatch) -> None:
        """Nothing is computed ahead."""

    def forward(
        self,
        spec: AttentionSpec,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cache: Any,
        batch: ForwardBatch,
    ) -> torch.Tensor:
        meta = batch.attention
        kept = meta.slot_mapping >= 0
        for stored, new in zip(cache, (key, value), strict=True):
            stored.flatten(0, 1)[meta.slot_mapping[kept]] = new[kept].to(stored.dtype)
        out = torch.zeros_like(query)
        for i, length in enumerate(meta.seq_lens.tolist()):
            if length == 0:
                continue
            start, end = meta.query_start_loc[i : i + 2].tolist()
            blocks = meta.block_table[i, : -(-length // meta.block_size)].long()
            keys, values = (stored[blocks].flatten(0, 1)[:length] for stored in cache)
            out[start:end] = dense_attention(spec, query[start:end], keys, values).to(out.dtype)
        return out
