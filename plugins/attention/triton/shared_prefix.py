"""Decode attention over keys that every request of a step shares: read once for all of them.

The query heads of all requests that use one key head are the rows of one tall tile. decode.py joins the results, a few for
each query head, with those of the keys that a request has alone. Source: Hydragen, arXiv:2402.05099.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from core.interfaces.attention import AttentionSpec
from core.kernels.launch import cdiv, has_pdl, launch, next_power_of_2, num_multiprocessors, options

NEG = tl.constexpr(-1.0e30)
KEYS = 64
MAX_SPLITS = 8


@triton.jit
def prefix_range(common, num, TILE: tl.constexpr):
    """Shared keys in a split (whole tiles), splits that have any. decode.py must agree with it."""
    per = tl.maximum(tl.cdiv(tl.cdiv(common, num), TILE) * TILE, TILE)
    return per, tl.cdiv(common, per)


@triton.jit(do_not_specialize=["num_rows", "num"])
def _prefix_kernel(
    q_ptr, keys_ptr, values_ptr, table_ptr, common_ptr, part_ptr, lse_ptr, stride_q, stride_block, stride_slot,
    qk_scale, soft_cap, num_rows, num,
    GROUP: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr, TILE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, CAP: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """One program: one key head, ROWS (request, query head) pairs, one split of the shared keys."""
    head, split = tl.program_id(0), tl.program_id(2)
    num_kv_heads = tl.num_programs(0)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    common = tl.load(common_ptr)
    per, used = prefix_range(common, num, TILE)
    if split < used:
        start = split * per
        end = tl.minimum(common, start + per)
        r = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
        d = tl.arange(0, BLOCK_D)
        n = tl.arange(0, TILE)
        request = (r // GROUP).to(tl.int64)
        # [ROWS, BLOCK_D]
        mine = (r < num_rows)[:, None] & (d < DIM)[None, :]
        q_at = request * stride_q + (head * GROUP + r % GROUP) * DIM
        q = tl.load(q_ptr + q_at[:, None] + d[None, :], mask=mine, other=0.0)
        m = tl.full([ROWS], NEG, tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
        for at in tl.range(start, end, TILE, num_stages=STAGES):
            key_at = at + n
            seen = key_at < end
            # the first request's blocks are everyone's
            block = tl.load(table_ptr + key_at // BLOCK_SIZE, mask=seen, other=0).to(tl.int64)
            place = block * stride_block + (key_at % BLOCK_SIZE) * stride_slot + head * DIM
            if BLOCK_D == DIM:
                inside = seen[:, None]
            else:
                inside = seen[:, None] & (d < DIM)[None, :]
            k = tl.load(keys_ptr + place[:, None] + d[None, :], mask=inside, other=0.0).to(q.dtype)
            v = tl.load(values_ptr + place[:, None] + d[None, :], mask=inside, other=0.0).to(q.dtype)
            x = tl.dot(q, tl.trans(k), input_precision=PRECISION) * qk_scale
            if CAP:
                # qk_scale holds no log2(e) here; tanh(z) = 1 - 2 / (e^2z + 1)
                x = soft_cap * (1 - 2 / (tl.exp(2 * x / soft_cap) + 1)) * 1.4426950408889634
            x = tl.where(seen[None, :], x, NEG)
            m_new = tl.maximum(m, tl.max(x, 1))
            p = tl.exp2(x - m_new[:, None])
            scale = tl.exp2(m - m_new)
            total = total * scale + tl.sum(p, 1)
            acc = tl.dot(p.to(v.dtype), v, acc * scale[:, None], input_precision=PRECISION)
            m = m_new
        acc = acc / total[:, None]
        row = ((request * num_kv_heads + head) * GROUP + r % GROUP) * num + split
        tl.store(part_ptr + row[:, None] * DIM + d[None, :], acc, mask=mine)
        tl.store(lse_ptr + row, m + tl.log2(total), mask=r < num_rows)


def is_tall(query: torch.Tensor) -> bool:
    return query.is_cuda and query.shape[2] <= 128 and query.element_size() <= 2


def prefix_tile(query: torch.Tensor) -> int:
    """Keys in a tile."""
    return KEYS if is_tall(query) else 32


def choose_prefix_splits(query: torch.Tensor, num_kv_heads: int) -> int:
    """As many as fill the device once."""
    group = query.shape[1] // num_kv_heads
    programs = num_kv_heads * cdiv(query.shape[0] * group, 128)
    return max(1, min(MAX_SPLITS, num_multiprocessors(query) // programs))


def prefix_attention(
    spec: AttentionSpec,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    block_table: torch.Tensor,
    common: torch.Tensor,
    part: torch.Tensor,
    lse: torch.Tensor,
    num: int,
    qk_scale: float,
) -> None:
    """Fill part, float32 [R, num_heads, num, head_dim], and lse, [R, num_heads, num]. common: int32 [1], shared keys."""
    num_requests, num_heads, dim = query.shape
    group = num_heads // spec.num_kv_heads
    rows = num_requests * group
    tile = max(16, min(128 if is_tall(query) else 32, next_power_of_2(rows)))
    pdl = has_pdl(query)
    cap = spec.soft_cap is not None
    launch(
        _prefix_kernel, (spec.num_kv_heads, cdiv(rows, tile), num),
        query, keys, values, block_table, common, part, lse, query.stride(0), keys.stride(0), keys.stride(1),
        qk_scale, spec.soft_cap or 1.0, rows, num,
        GROUP=group, ROWS=tile, DIM=dim, BLOCK_D=max(16, next_power_of_2(dim)),
        TILE=prefix_tile(query), BLOCK_SIZE=keys.shape[1], CAP=cap, STAGES=2,
        PRECISION="ieee" if query.dtype == torch.float32 else "tf32", PDL=pdl,
        **options(pdl, num_warps=8 if tile == 128 else 4),
    )  # fmt: skip
