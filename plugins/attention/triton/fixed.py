"""Attention in which a token's result depends on its own query and on the keys before it alone, bit by bit.

One kernel for prompts, their pieces and decodes: whatever a step brings along, and however a prompt was cut, the keys
are read from the paged cache in tiles that begin at multiples of KEYS, first to last, by one program. No splits, so a
long decode that is alone does not fill the device. The query heads of a group are rows of one tile.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from core.interfaces.attention import AttentionSpec
from core.kernels.launch import cdiv, has_pdl, launch, next_power_of_2, options

NEG = tl.constexpr(-1.0e30)
TILE = 16
"""New tokens in a tile of the list that the host makes."""
MAX_ROWS = 128


@triton.jit
def _fixed_attention_kernel(
    q_ptr, keys_ptr, values_ptr, out_ptr, table_ptr, starts_ptr, lengths_ptr, tiles_ptr, slopes_ptr,
    stride_q, stride_out, stride_table, stride_block, stride_slot, qk_scale, soft_cap,
    GROUP: tl.constexpr, GROUP_ROWS: tl.constexpr, POSITIONS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    KEYS: tl.constexpr, BLOCK_SIZE: tl.constexpr, TILED: tl.constexpr, TILE: tl.constexpr, WINDOW: tl.constexpr,
    CAP: tl.constexpr, ALIBI: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: one key head, POSITIONS new tokens of one request; not TILED: request i's one new token is i."""
    head = tl.program_id(0)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    if TILED:
        request = tl.load(tiles_ptr + tl.program_id(1) * 2).to(tl.int64)
        first = tl.load(tiles_ptr + tl.program_id(1) * 2 + 1) * TILE + tl.program_id(2) * POSITIONS
        if request < 0:
            return  # what only fills a captured graph up
        start = tl.load(starts_ptr + request)
        count = tl.load(starts_ptr + request + 1) - start
        length = tl.load(lengths_ptr + request)
    else:
        request = tl.program_id(1).to(tl.int64)
        first = 0
        start = tl.program_id(1)
        count = 1
        length = tl.load(lengths_ptr + request)
    r = tl.arange(0, POSITIONS * GROUP_ROWS)
    d = tl.arange(0, BLOCK_D)
    n = tl.arange(0, KEYS)
    new = first + r // GROUP_ROWS
    query_head = head * GROUP + r % GROUP_ROWS
    # [ROWS, BLOCK_D]
    mine = ((new < count) & (r % GROUP_ROWS < GROUP))[:, None] & (d < DIM)[None, :]
    token = (start + new).to(tl.int64)
    out_at = token[:, None] * stride_out + (query_head * DIM)[:, None] + d[None, :]
    if length == 0:
        # a row that only fills a captured graph up: finite, whatever reads it
        tl.store(out_ptr + out_at, tl.zeros([POSITIONS * GROUP_ROWS, BLOCK_D], out_ptr.dtype.element_ty), mask=mine)
        return
    position = length - count + new
    q = tl.load(q_ptr + token[:, None] * stride_q + (query_head * DIM)[:, None] + d[None, :], mask=mine, other=0.0)
    if ALIBI:
        slope = tl.load(slopes_ptr + query_head, mask=r % GROUP_ROWS < GROUP, other=0.0)
    m = tl.full([POSITIONS * GROUP_ROWS], NEG, tl.float32)
    total = tl.zeros([POSITIONS * GROUP_ROWS], tl.float32)
    acc = tl.zeros([POSITIONS * GROUP_ROWS, BLOCK_D], tl.float32)
    low = 0
    if WINDOW > 0:
        low = tl.maximum(length - count + first - WINDOW + 1, 0) // KEYS * KEYS
    high = tl.minimum(length, length - count + first + POSITIONS)
    for at in tl.range(low, high, KEYS, num_stages=STAGES):
        key_at = at + n
        exists = key_at < length
        block = tl.load(table_ptr + request * stride_table + key_at // BLOCK_SIZE, mask=exists, other=0).to(tl.int64)
        # [KEYS, BLOCK_D]
        place = block * stride_block + (key_at % BLOCK_SIZE) * stride_slot + head * DIM
        inside = exists[:, None] & (d < DIM)[None, :]
        k = tl.load(keys_ptr + place[:, None] + d[None, :], mask=inside, other=0.0).to(q.dtype)
        v = tl.load(values_ptr + place[:, None] + d[None, :], mask=inside, other=0.0).to(q.dtype)
        x = tl.dot(q, tl.trans(k), input_precision=PRECISION) * qk_scale
        if CAP:
            # qk_scale holds no log2(e) here; tanh(z) = 1 - 2 / (e^2z + 1)
            x = soft_cap * (1 - 2 / (tl.exp(2 * x / soft_cap) + 1)) * 1.4426950408889634
        if ALIBI:
            x += slope[:, None] * (key_at[None, :] - position[:, None])
        seen = (key_at[None, :] <= position[:, None]) & exists[None, :]
        if WINDOW > 0:
            seen = seen & (key_at[None, :] > position[:, None] - WINDOW)
        x = tl.where(seen, x, NEG)
        m_new = tl.maximum(m, tl.max(x, 1))
        # 0, not exp2(NEG - NEG) = 1, where a row has seen nothing yet; a tile that it sees nothing of changes no bit
        p = tl.where(seen, tl.exp2(x - m_new[:, None]), 0.0)
        scale = tl.exp2(m - m_new)
        total = total * scale + tl.sum(p, 1)
        acc = tl.dot(p.to(v.dtype), v, acc * scale[:, None], input_precision=PRECISION)
        m = m_new
    acc = acc / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(out_ptr + out_at, acc.to(out_ptr.dtype.element_ty), mask=mine)


def fixed_attention(
    spec: AttentionSpec,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    block_table: torch.Tensor,
    query_start_loc: torch.Tensor,
    seq_lens: torch.Tensor,
    out: torch.Tensor,
    tiles: torch.Tensor | None = None,
    slopes: torch.Tensor | None = None,
) -> None:
    """query, out: [T, num_heads, head_dim], heads together; keys, values: the cache, with the new tokens in it.

    tiles: int32 [n, 2]: (request, tile of TILE new tokens), request -1 for none; only what they name is written. Without
    tiles each of seq_lens is one request with one new token, in order; a length of 0 is padding and gets zeros.
    """
    num_heads, dim = query.shape[1:]
    for name, t in (("query", query), ("out", out)):
        if t.stride(2) != 1 or t.stride(1) != dim:
            raise ValueError(f"the heads of {name} must lie together; its strides are {t.stride()}")
    count = seq_lens.shape[0] if tiles is None else tiles.shape[0]
    if count == 0:
        return
    group = num_heads // spec.num_kv_heads
    group_rows = next_power_of_2(group)
    positions = max(1, min(TILE, MAX_ROWS // group_rows))
    group_rows = max(group_rows, 16 // positions)  # what a matrix instruction takes at least
    narrow = query.is_cuda and dim <= 128 and query.element_size() <= 2
    tile_keys, stages = (64, 3 if has_pdl(query) else 2) if narrow else (32 if query.is_cuda else 16, 2)
    cap = spec.soft_cap is not None
    pdl = has_pdl(query)
    launch(
        _fixed_attention_kernel, (spec.num_kv_heads, count, 1 if tiles is None else cdiv(TILE, positions)),
        query, keys, values, out, block_table, query_start_loc, seq_lens, seq_lens if tiles is None else tiles,
        seq_lens if slopes is None else slopes,
        query.stride(0), out.stride(0), block_table.stride(0), keys.stride(0), keys.stride(1),
        spec.scale if cap else spec.scale * math.log2(math.e), spec.soft_cap or 1.0,
        GROUP=group, GROUP_ROWS=group_rows, POSITIONS=positions, DIM=dim,
        BLOCK_D=max(16, next_power_of_2(dim)), KEYS=tile_keys, BLOCK_SIZE=keys.shape[1], TILED=tiles is not None,
        TILE=TILE, WINDOW=spec.window or 0, CAP=cap, ALIBI=slopes is not None, STAGES=stages,
        PRECISION="ieee" if query.dtype == torch.float32 else "tf32", PDL=pdl,
        **options(pdl, num_warps=4 if query.is_cuda else 1),
    )  # fmt: skip
