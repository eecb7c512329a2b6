"""flash-attn's two functions in plain torch, by their docstrings, with the checks of csrc/flash_attn/flash_api.cpp."""

from __future__ import annotations

import torch


def _check_cache(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, block_table: torch.Tensor) -> None:
    assert k.shape[1] % 256 == 0, "Paged KV cache block size must be divisible by 256"
    assert k.dtype == v.dtype == q.dtype, "query, key and value must have the same dtype"
    assert block_table.dtype == torch.int32 and block_table.stride(-1) == 1


def _attend(q, k, v, softmax_scale, causal, window_size, softcap, alibi_slopes) -> torch.Tensor:
    """One request: q [new, heads, dim]; k, v [keys, kv_heads, dim]."""
    if len(k) == 0:
        return torch.zeros_like(q)
    group = q.shape[1] // k.shape[1]
    k, v = (t.float().repeat_interleave(group, 1) for t in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q.float(), k) * softmax_scale
    if softcap > 0:
        scores = torch.tanh(scores / softcap) * softcap
    # query i sees keys i + seqlen_k - seqlen_q - window_size[0] to i + seqlen_k - seqlen_q + window_size[1]
    distance = torch.arange(len(q))[:, None] + len(k) - len(q) - torch.arange(len(k))[None]
    if alibi_slopes is not None:
        assert alibi_slopes.dtype == torch.float32 and alibi_slopes.shape == (q.shape[1],)
        scores = scores - alibi_slopes[:, None, None] * distance.abs()
    left, right = window_size
    right = 0 if causal else right
    hidden = torch.zeros(distance.shape, dtype=torch.bool)
    if left >= 0:
        hidden |= distance > left
    if right >= 0:
        hidden |= distance < -right
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v).to(q.dtype)


def flash_attn_with_kvcache(
    q, k_cache, v_cache, *, cache_seqlens, block_table, softmax_scale, causal, window_size, softcap, alibi_slopes
) -> torch.Tensor:
    assert q.ndim == 4 and cache_seqlens.dtype == torch.int32
    assert cache_seqlens.shape == (len(q),) and len(block_table) == len(q)
    _check_cache(q, k_cache, v_cache, block_table)
    how = (softmax_scale, causal, window_size, softcap, alibi_slopes)
    out = []
    for i, length in enumerate(cache_seqlens.tolist()):
        pages = block_table[i, : -(-length // k_cache.shape[1])].long()
        k, v = (c[pages].flatten(0, 1)[:length] for c in (k_cache, v_cache))
        out.append(_attend(q[i], k, v, *how))
    return torch.stack(out)


def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, *,
    block_table, softmax_scale, causal, window_size, softcap, alibi_slopes,
) -> torch.Tensor:  # fmt: skip
    assert q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
    for starts in (cu_seqlens_q, cu_seqlens_k):
        assert starts.dtype == torch.int32 and starts.is_contiguous() and int(starts[0]) == 0
    assert len(cu_seqlens_q) == len(cu_seqlens_k) and int(cu_seqlens_q[-1]) == len(q)
    assert max_seqlen_q == int(cu_seqlens_q.diff().max()) and max_seqlen_k == int(cu_seqlens_k.diff().max())
    if block_table is None:
        assert int(cu_seqlens_k[-1]) == len(k) == len(v)
    else:
        _check_cache(q, k, v, block_table)
    out = []
    for i, length in enumerate(cu_seqlens_k.diff().tolist()):
        if block_table is None:
            keys, values = (t[int(cu_seqlens_k[i]) : int(cu_seqlens_k[i + 1])] for t in (k, v))
        else:
            pages = block_table[i, : -(-length // k.shape[1])].long()
            keys, values = (c[pages].flatten(0, 1)[:length] for c in (k, v))
        mine = q[int(cu_seqlens_q[i]) : int(cu_seqlens_q[i + 1])]
        out.append(_attend(mine, keys, values, softmax_scale, causal, window_size, softcap, alibi_slopes))
    return torch.cat(out)
