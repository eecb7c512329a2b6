"""Paged attention, one request and one head at a time, in float32: the specification of every backend."""

from __future__ import annotations

import torch

from core.batch import ForwardBatch
from core.interfaces.attention import AttentionSpec


def paged_attention_reference(
    spec: AttentionSpec, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, batch: ForwardBatch
) -> torch.Tensor:
    """Attend over a cache that holds this step's keys and values already.

    query: [num_tokens, num_heads, head_dim]; keys, values: [num_blocks, block_size, num_kv_heads, head_dim].
    """
    meta = batch.attention
    out = torch.zeros_like(query, dtype=torch.float32)
    group = spec.num_heads // spec.num_kv_heads
    for i in range(meta.num_requests):
        start, end = int(meta.query_start_loc[i]), int(meta.query_start_loc[i + 1])
        length = int(meta.seq_lens[i])
        if length == 0:
            continue
        blocks = meta.block_table[i, : -(-length // meta.block_size)].long()
        k = keys[blocks].flatten(0, 1)[:length].float()
        v = values[blocks].flatten(0, 1)[:length].float()
        key_at = torch.arange(length, device=query.device)
        query_at = length - (end - start) + torch.arange(end - start, device=query.device)
        distance = query_at[:, None] - key_at[None]
        hidden = distance < 0
        if spec.window is not None:
            hidden = hidden | (distance >= spec.window)
        for head in range(spec.num_heads):
            scores = query[start:end, head].float() @ k[:, head // group].T * spec.scale
            if spec.soft_cap is not None:
                scores = torch.tanh(scores / spec.soft_cap) * spec.soft_cap
            if spec.alibi_slopes is not None:
                scores = scores - spec.alibi_slopes[head] * distance
            scores = scores.masked_fill(hidden, float("-inf"))
            out[start:end, head] = scores.softmax(-1) @ v[:, head // group]
    return out.to(query.dtype)
