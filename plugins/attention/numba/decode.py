"""PagedAttention for requests with one new token, on a CPU: keys and values are read where they lie, once for the query
heads of a group. Source: arXiv:2309.06180.
"""

from __future__ import annotations

import numpy as np
import torch

from core.batch import AttentionMetadata
from core.interfaces.attention import AttentionSpec
from core.kernels.cpu.jit import Kernel, exp, float32s, inlined, int32s, numbers, part, real


@inlined
def _scores(query, keys, table, first, length, h, scores):  # type: ignore[no-untyped-def]
    """scores[g, t - first] = query[g] . key of token t"""
    block_size, dim = keys.shape[1], keys.shape[3]
    for b in range(first // block_size, (length - 1) // block_size + 1):
        block = keys[table[b]]
        begin, end = max(first - b * block_size, 0), min(length - b * block_size, block_size)
        at = b * block_size - first
        for g in range(query.shape[0]):
            s = begin
            while s + 3 < end:
                a0 = a1 = a2 = a3 = np.float32(0)
                for i in range(dim):
                    q = query[g, i]
                    a0 += block[s, h, i] * q
                    a1 += block[s + 1, h, i] * q
                    a2 += block[s + 2, h, i] * q
                    a3 += block[s + 3, h, i] * q
                scores[g, at + s], scores[g, at + s + 1] = a0, a1
                scores[g, at + s + 2], scores[g, at + s + 3] = a2, a3
                s += 4
            while s < end:
                a0 = np.float32(0)
                for i in range(dim):
                    a0 += block[s, h, i] * query[g, i]
                scores[g, at + s] = a0
                s += 1


@inlined
def _softmax(row, scale):  # type: ignore[no-untyped-def]
    """In place, not divided by its sum. -> the sum"""
    highest = row[0]
    for t in range(1, row.shape[0]):
        highest = max(highest, row[t])
    total = np.float32(0)
    for t in range(row.shape[0]):
        row[t] = exp((row[t] - highest) * scale)
        total += row[t]
    return total


@inlined
def _add_values(weights, values, table, first, length, h, out):  # type: ignore[no-untyped-def]
    """out[g] += the sum over tokens t of weights[g, t - first] * value of t"""
    block_size, dim = values.shape[1], values.shape[3]
    for b in range(first // block_size, (length - 1) // block_size + 1):
        block = values[table[b]]
        begin, end = max(first - b * block_size, 0), min(length - b * block_size, block_size)
        at = b * block_size - first
        for g in range(out.shape[0]):
            s = begin
            while s + 3 < end:
                w0, w1 = weights[g, at + s], weights[g, at + s + 1]
                w2, w3 = weights[g, at + s + 2], weights[g, at + s + 3]
                for i in range(dim):
                    out[g, i] += (w0 * block[s, h, i] + w1 * block[s + 1, h, i]) + (
                        w2 * block[s + 2, h, i] + w3 * block[s + 3, h, i]
                    )
                s += 4
            while s < end:
                w0 = weights[g, at + s]
                for i in range(dim):
                    out[g, i] += w0 * block[s, h, i]
                s += 1


def _decode_attention(at, share, shares):  # type: ignore[no-untyped-def]
    """query_heads_in_row: of a token's row in memory, the first `heads` of them are queries. window 0: none."""
    (
        query_at, keys_at, values_at, table_at, lengths_at, out_at,
        requests, query_heads_in_row, max_blocks, num_blocks, block_size, heads, kv_heads, dim, scale, window,
    ) = numbers(at, 16)  # fmt: skip
    query = float32s(query_at, (requests, query_heads_in_row, dim))
    keys = float32s(keys_at, (num_blocks, block_size, kv_heads, dim))
    values = float32s(values_at, (num_blocks, block_size, kv_heads, dim))
    table, lengths = int32s(table_at, (requests, max_blocks)), int32s(lengths_at, (requests,))
    out = float32s(out_at, (requests, heads, dim))
    group = heads // kv_heads
    for task in part(requests * kv_heads, share, shares):
        r, h = task // kv_heads, task % kv_heads
        own = out[r, h * group : h * group + group]
        own[:] = np.float32(0)
        length = lengths[r]
        if length > 0:
            first = max(length - window, 0) if window > 0 else 0
            scores = np.empty((group, length - first), np.float32)
            _scores(query[r, h * group : h * group + group], keys, table[r], first, length, h, scores)
            for g in range(group):
                total = _softmax(scores[g], np.float32(real(scale)))
                for t in range(length - first):
                    scores[g, t] /= total
            _add_values(scores, values, table[r], first, length, h, own)


_kernel = Kernel(_decode_attention, "14qdq")


def decode_attention(
    spec: AttentionSpec, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, meta: AttentionMetadata
) -> torch.Tensor:
    """The first `meta.num_decodes` requests, whose token is query's row of the same number.

    query: [num_decodes, num_heads or more, head_dim]: a fused projection's rows are taken as they are;
    keys, values: [num_blocks, block_size, num_kv_heads, head_dim] -> [num_decodes, num_heads, head_dim]
    """
    requests, heads, dim = meta.num_decodes, spec.num_heads, spec.head_dim
    if query.stride() != (query.stride(0), dim, 1) or query.stride(0) % dim:
        query = query.contiguous()
    num_blocks, block_size, kv_heads, _ = keys.shape
    table = meta.block_table
    out = torch.empty((requests, heads, dim))
    _kernel(
        2 * requests * heads * dim * meta.max_seq_len,
        query.data_ptr(), keys.data_ptr(), values.data_ptr(), table.data_ptr(), meta.seq_lens.data_ptr(), out.data_ptr(),
        requests, query.stride(0) // dim, table.shape[1], num_blocks, block_size, heads, kv_heads, dim, spec.scale,
        spec.window or 0,
    )  # fmt: skip
    return out
