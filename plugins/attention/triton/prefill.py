"""Prefill attention, causal, over requests of different lengths packed one after another.

Keys and values come from the paged cache when a request has earlier context (a cached prefix, the chunks before), and
straight from the activations when it has none. A host-made list of tiles (request, rows) is the grid, so no program is
without work. Source: FlashAttention-2, arXiv:2307.08691. The specification is plugins/attention/torch/reference.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from core.interfaces.attention import AttentionSpec
from core.kernels.launch import has_tma, launch, next_power_of_2

NEG = tl.constexpr(-1.0e30)


@dataclass(frozen=True, slots=True)
class PrefillConfig:
    rows: int
    """Query rows in a tile."""
    keys: int
    stages: int
    warps: int


# H100 80GB HBM3, 32 query and 8 key heads of 128, bf16, TFLOP/s at 2048 / 16384 tokens of one request. From activations,
# through tensor descriptors: 64/64/3 346 / 555, 128/64/3 310 / 567, 128/64/2 248 / 413, 128/128/2 282 / 488. From the
# cache: 128/128/2 253 / 412, 64/64/3 252 / 388, 128/64/3 225 / 368. cuDNN: 379 / 657.
LONG = PrefillConfig(128, 64, 3, 8)
"""head_dim up to 128, many tokens"""
PAGED = PrefillConfig(128, 128, 2, 8)
MEDIUM = PrefillConfig(64, 64, 3, 4)
LONG_STEP = 4096
"""New tokens of a step from which tall tiles are enough to fill the device."""
WIDE = PrefillConfig(64, 32, 2, 4)
"""head_dim above 128, or 4-byte numbers"""
SHORT = PrefillConfig(64, 64, 2, 4)
"""In captured steps, which are short: more programs"""
SHORT_WIDE = PrefillConfig(64, 32, 1, 4)
SMALL = PrefillConfig(16, 16, 1, 4)
"""In Triton's interpreter: what a test can afford."""


def choose_config(query: torch.Tensor, paged: bool, most_new: int | None = None) -> PrefillConfig:
    """query: [T, num_heads, head_dim]; most_new: the most new tokens of a request."""
    if not query.is_cuda:
        return SMALL
    if query.shape[2] > 128 or query.element_size() > 2:
        return WIDE
    if query.shape[0] < LONG_STEP or (most_new is not None and most_new <= MEDIUM.rows):
        return MEDIUM
    return PAGED if paged else LONG


@triton.jit
def _attend(
    acc, total, m, q, keys_ptr, values_ptr, table_ptr, slope, low, high, key_start, length, row0, head,
    stride_key, stride_value, stride_block, stride_slot, qk_scale, soft_cap,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    PAGED: tl.constexpr, TMA: tl.constexpr, MASK: tl.constexpr, WINDOW: tl.constexpr, CAP: tl.constexpr,
    ALIBI: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Attend to the keys low to high. MASK: some are unseen by some rows; row r of the tile stands at row0 + r."""
    n = tl.arange(0, KEYS)
    d = tl.arange(0, BLOCK_D)
    position = row0 + tl.arange(0, ROWS)
    for at in tl.range(low, high, KEYS, num_stages=STAGES):
        key_at = at + n
        # [KEYS, BLOCK_D]
        if TMA:
            k = keys_ptr.load([key_start + at, head * DIM])
            v = values_ptr.load([key_start + at, head * DIM])
        else:
            inside = (d < DIM)[None, :]
            if MASK:
                inside = inside & (key_at < length)[:, None]
            if PAGED:
                block = tl.load(table_ptr + key_at // BLOCK_SIZE, mask=key_at < length, other=0).to(tl.int64)
                place = block * stride_block + (key_at % BLOCK_SIZE) * stride_slot + head * DIM
                k_at = place[:, None] + d[None, :]
                v_at = k_at
            else:
                row = (key_start + key_at).to(tl.int64)
                k_at = (row * stride_key + head * DIM)[:, None] + d[None, :]
                v_at = (row * stride_value + head * DIM)[:, None] + d[None, :]
            if MASK or BLOCK_D != DIM:
                k = tl.load(keys_ptr + k_at, mask=inside, other=0.0)
                v = tl.load(values_ptr + v_at, mask=inside, other=0.0)
            else:
                k = tl.load(keys_ptr + k_at)
                v = tl.load(values_ptr + v_at)
            k = k.to(q.dtype)
            v = v.to(q.dtype)
        x = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if CAP:
            # qk_scale holds no log2(e) here; tanh(z) = 1 - 2 / (e^2z + 1)
            x = soft_cap * (1 - 2 / (tl.exp(2 * x * qk_scale / soft_cap) + 1)) * 1.4426950408889634
        if CAP or ALIBI or MASK:
            if not CAP:
                x = x * qk_scale
            if ALIBI:
                x += slope * (key_at[None, :] - position[:, None])
            if MASK:
                seen = (key_at[None, :] <= position[:, None]) & (key_at < length)[None, :]
                if WINDOW > 0:
                    seen = seen & (key_at[None, :] > position[:, None] - WINDOW)
                x = tl.where(seen, x, NEG)
            m_new = tl.maximum(m, tl.max(x, 1))
            x = x - m_new[:, None]
        else:
            m_new = tl.maximum(m, tl.max(x, 1) * qk_scale)
            x = x * qk_scale - m_new[:, None]
        p = tl.exp2(x)
        if MASK and WINDOW > 0:
            # a row may see nothing of a tile before it has seen anything: its maximum is still NEG, and exp2(0) is 1
            p = tl.where(seen, p, 0.0)
        scale = tl.exp2(m - m_new)
        total = total * scale + tl.sum(p, 1)
        acc = tl.dot(p.to(v.dtype), v, acc * scale[:, None], input_precision=PRECISION)
        m = m_new
    return acc, total, m


@triton.jit
def _prefill_kernel(
    q_ptr, keys_ptr, values_ptr, keys_desc, values_desc, out_ptr, table_ptr, starts_ptr, lengths_ptr, tiles_ptr,
    slopes_ptr, stride_q, stride_key, stride_value, stride_out, stride_table, stride_block, stride_slot, qk_scale,
    soft_cap,
    GROUP: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, PAGED: tl.constexpr, TMA: tl.constexpr, WINDOW: tl.constexpr, CAP: tl.constexpr,
    ALIBI: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: one query head, one tile of rows of one request."""
    # tiles of one head run side by side: its keys and values then stay in the L2 cache
    head = tl.program_id(1)
    request = tl.load(tiles_ptr + tl.program_id(0) * 2).to(tl.int64)
    tile = tl.load(tiles_ptr + tl.program_id(0) * 2 + 1)
    if request < 0:
        return  # what only fills a captured graph up
    start = tl.load(starts_ptr + request)
    count = tl.load(starts_ptr + request + 1) - start
    length = tl.load(lengths_ptr + request)
    row0 = length - count + tile * ROWS
    r = tl.arange(0, ROWS)
    d = tl.arange(0, BLOCK_D)
    # [ROWS, BLOCK_D]
    mine = (tile * ROWS + r < count)[:, None] & (d < DIM)[None, :]
    token = (start + tile * ROWS + r).to(tl.int64)
    q = tl.load(q_ptr + token[:, None] * stride_q + head * DIM + d[None, :], mask=mine, other=0.0)
    slope = 0.0
    if ALIBI:
        slope = tl.load(slopes_ptr + head)
    m = tl.full([ROWS], NEG, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
    kv_head = head // GROUP
    table = table_ptr + request * stride_table
    high = tl.minimum(length, row0 + ROWS)
    low = 0
    if WINDOW > 0:
        low = tl.maximum(row0 - WINDOW + 1, 0) // KEYS * KEYS
    else:
        # the tiles that every row sees whole
        full = (row0 + 1) // KEYS * KEYS
        if TMA:
            acc, total, m = _attend(
                acc, total, m, q, keys_desc, values_desc, table, slope, 0, full, start, length, row0, kv_head,
                stride_key, stride_value, stride_block, stride_slot, qk_scale, soft_cap,
                DIM, BLOCK_D, ROWS, KEYS, BLOCK_SIZE, False, True, False, WINDOW, CAP, ALIBI, STAGES, PRECISION,
            )  # fmt: skip
        else:
            acc, total, m = _attend(
                acc, total, m, q, keys_ptr, values_ptr, table, slope, 0, full, start, length, row0, kv_head,
                stride_key, stride_value, stride_block, stride_slot, qk_scale, soft_cap,
                DIM, BLOCK_D, ROWS, KEYS, BLOCK_SIZE, PAGED, False, False, WINDOW, CAP, ALIBI, STAGES, PRECISION,
            )  # fmt: skip
        low = full
    # what lies behind the request's end belongs to others: masked loads, never a descriptor
    acc, total, m = _attend(
        acc, total, m, q, keys_ptr, values_ptr, table, slope, low, high, start, length, row0, kv_head,
        stride_key, stride_value, stride_block, stride_slot, qk_scale, soft_cap,
        DIM, BLOCK_D, ROWS, KEYS, BLOCK_SIZE, PAGED, False, True, WINDOW, CAP, ALIBI, STAGES, PRECISION,
    )  # fmt: skip
    acc = acc / tl.where(total > 0, total, 1.0)[:, None]
    out_at = token[:, None] * stride_out + head * DIM + d[None, :]
    tl.store(out_ptr + out_at, acc.to(out_ptr.dtype.element_ty), mask=mine)


def prefill_attention(
    spec: AttentionSpec,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    block_table: torch.Tensor,
    query_start_loc: torch.Tensor,
    seq_lens: torch.Tensor,
    tiles: torch.Tensor,
    out: torch.Tensor,
    *,
    paged: bool,
    slopes: torch.Tensor | None = None,
    config: PrefillConfig | None = None,
    tma: bool | None = None,
) -> None:
    """query, out: [T, num_heads, head_dim], heads together. tiles: int32 [n, 2]: (request, tile of `config.rows` rows).

    keys, values: the cache, [num_blocks, block_size, num_kv_heads, head_dim], if `paged`, else the activations
    [T, num_kv_heads, head_dim] of requests without earlier context. Only rows that the tiles name are written.
    """
    dim = spec.head_dim
    for name, t in (("query", query), ("out", out)) + (() if paged else (("key", keys), ("value", values))):
        if t.stride(2) != 1 or t.stride(1) != dim:
            raise ValueError(f"the heads of {name} must lie together; its strides are {t.stride()}")
    if tiles.shape[0] == 0:
        return
    config = config or choose_config(query, paged)
    block_d = max(16, next_power_of_2(dim))  # what a matrix instruction takes at least
    item = keys.element_size()
    can = (
        not paged
        and block_d == dim
        and not spec.window
        and all(t.data_ptr() % 16 == 0 and t.stride(0) * item % 16 == 0 for t in (keys, values))
    )
    use_tma = can and (has_tma(query) if tma is None else tma)
    keys_desc: object = keys
    values_desc: object = values
    if use_tma:
        box = [config.keys, dim]
        keys_desc, values_desc = (
            TensorDescriptor(t, [t.shape[0], spec.num_kv_heads * dim], [t.stride(0), 1], box) for t in (keys, values)
        )
    cap = spec.soft_cap is not None
    launch(
        _prefill_kernel, (tiles.shape[0], spec.num_heads),
        query, keys, values, keys_desc, values_desc, out, block_table, query_start_loc, seq_lens, tiles,
        seq_lens if slopes is None else slopes,
        query.stride(0), keys.stride(0), values.stride(0), out.stride(0), block_table.stride(0), keys.stride(0),
        keys.stride(1), spec.scale if cap else spec.scale * math.log2(math.e), spec.soft_cap or 1.0,
        GROUP=spec.num_heads // spec.num_kv_heads, DIM=dim, BLOCK_D=block_d, ROWS=config.rows, KEYS=config.keys,
        BLOCK_SIZE=keys.shape[1] if paged else 1, PAGED=paged, TMA=use_tma, WINDOW=spec.window or 0, CAP=cap,
        ALIBI=slopes is not None, STAGES=config.stages,
        PRECISION="ieee" if query.dtype == torch.float32 else "tf32", num_warps=config.warps,
    )  # fmt: skip
