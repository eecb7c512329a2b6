"""Decode attention over the paged cache: one new token a request, the keys in splits, then a merge of the splits.

Lengths, block tables and the split of the work are read from device memory, so a captured graph serves every batch up
to its size. The query heads that share a key head are the rows of one tile. Source: PagedAttention, arXiv:2309.06180;
Flash-Decoding, https://crfm.stanford.edu/2023/10/12/flashdecoding.html. The specification is
plugins/attention/torch/reference.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from core.interfaces.attention import AttentionSpec
from core.kernels.launch import has_pdl, launch, num_multiprocessors, options
from plugins.attention.triton.shared_prefix import choose_prefix_splits, prefix_attention, prefix_range, prefix_tile

NEG = tl.constexpr(-1.0e30)
MAX_SPLITS = 64
MIN_SPLITS = 4
PROGRAMS_PER_MULTIPROCESSOR = 4


@dataclass(frozen=True, slots=True)
class DecodeConfig:
    keys: int
    """Keys in a tile."""
    stages: int
    warps: int


# H100 80GB HBM3, 32 query and 8 key heads of 128, bf16. Lengths from 150 to 1900: 8 requests 19.6 us, 32 57, 64 106,
# 128 198, 256 383; one warp a program and no splits: 24.5, 71, 123, 206, 403.
MANY = DecodeConfig(64, 3, 4)
FEW = DecodeConfig(32, 4, 2)
"""Few programs, all of them long: 1 x 32768 58 us instead of 67, 8 x 2048 31 instead of 34."""


@triton.jit
def _split_range(length, common, num_splits, min_keys, WINDOW: tl.constexpr, KEYS: tl.constexpr):
    """First key that is seen, keys in a split (whole tiles), splits that have any. The merge must agree with it.

    The first `common` keys are read elsewhere.
    """
    low = common
    if WINDOW > 0:
        low = tl.maximum(length - WINDOW, 0)
    # as many as have min_keys, of equal size: 640 keys are 320 and 320, not 512 and 128
    wanted = tl.maximum(tl.minimum(num_splits, tl.cdiv(length - low, min_keys)), 1)
    per = tl.maximum(tl.cdiv(tl.cdiv(length - low, wanted), KEYS), 1) * KEYS
    return low, per, tl.cdiv(length - low, per)


@triton.jit(do_not_specialize=["num_splits", "num_slots", "min_keys"])
def _decode_kernel(
    q_ptr, keys_ptr, values_ptr, table_ptr, lengths_ptr, common_ptr, out_ptr, part_ptr, lse_ptr, slopes_ptr,
    stride_q, stride_table, stride_block, stride_slot, qk_scale, soft_cap, num_splits, num_slots, min_keys,
    GROUP: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr, KEYS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, WINDOW: tl.constexpr, CAP: tl.constexpr, ALIBI: tl.constexpr, STAGES: tl.constexpr,
    SHARED: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: one request, one key head, one split."""
    head, split, request = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    num_kv_heads = tl.num_programs(0)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    length = tl.load(lengths_ptr + request)
    common = 0
    if SHARED > 0:
        common = tl.load(common_ptr)
    low, per, used = _split_range(length, common, num_splits, min_keys, WINDOW, KEYS)
    if (split < used) & (length > 0):
        start = low + split * per
        end = tl.minimum(length, start + per)
        r = tl.arange(0, ROWS)
        d = tl.arange(0, BLOCK_D)
        n = tl.arange(0, KEYS)
        # [ROWS, BLOCK_D]
        mine = (r < GROUP)[:, None] & (d < DIM)[None, :]
        q_at = request * stride_q + (head * GROUP + r)[:, None] * DIM + d[None, :]
        q = tl.load(q_ptr + q_at, mask=mine, other=0.0)
        if ALIBI:
            slope = tl.load(slopes_ptr + head * GROUP + r, mask=r < GROUP, other=0.0)
        m = tl.full([ROWS], NEG, tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
        for at in tl.range(start, end, KEYS, num_stages=STAGES):
            key_at = at + n
            seen = key_at < end
            block = tl.load(table_ptr + request * stride_table + key_at // BLOCK_SIZE, mask=seen, other=0).to(tl.int64)
            # [KEYS, BLOCK_D]
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
            if ALIBI:
                x += slope[:, None] * (key_at - length + 1)[None, :]
            x = tl.where(seen[None, :], x, NEG)
            m_new = tl.maximum(m, tl.max(x, 1))
            p = tl.exp2(x - m_new[:, None])
            scale = tl.exp2(m - m_new)
            total = total * scale + tl.sum(p, 1)
            acc = tl.dot(p.to(v.dtype), v, acc * scale[:, None], input_precision=PRECISION)
            m = m_new
        acc = acc / total[:, None]
        out_row = (request * num_kv_heads + head) * GROUP + r
        if (used == 1) & (common == 0):
            tl.store(out_ptr + out_row[:, None] * DIM + d[None, :], acc.to(out_ptr.dtype.element_ty), mask=mine)
        else:
            part_row = out_row * num_slots + split
            tl.store(part_ptr + part_row[:, None] * DIM + d[None, :], acc, mask=mine)
            tl.store(lse_ptr + part_row, m + tl.log2(total), mask=r < GROUP)
    elif (length == 0) & (split == 0):
        # a row that only fills a captured graph up: finite, whatever reads it
        r = tl.arange(0, ROWS)
        d = tl.arange(0, BLOCK_D)
        out_row = (request * num_kv_heads + head) * GROUP + r
        zero = tl.zeros([ROWS, BLOCK_D], out_ptr.dtype.element_ty)
        mine = (r < GROUP)[:, None] & (d < DIM)[None, :]
        tl.store(out_ptr + out_row[:, None] * DIM + d[None, :], zero, mask=mine)


@triton.jit(do_not_specialize=["num_splits", "num_slots", "min_keys"])
def _merge_kernel(
    part_ptr, lse_ptr, lengths_ptr, common_ptr, out_ptr, num_splits, num_slots, min_keys,
    HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr, SLOTS: tl.constexpr, KEYS: tl.constexpr,
    WINDOW: tl.constexpr, SHARED: tl.constexpr, PREFIX_TILE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: one query head of one request."""
    row = tl.program_id(0).to(tl.int64)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    length = tl.load(lengths_ptr + row // HEADS)
    common = 0
    if SHARED > 0:
        common = tl.load(common_ptr)
    _, _, used = _split_range(length, common, num_splits, min_keys, WINDOW, KEYS)
    if (length > 0) & ((used > 1) | (common > 0)):
        s = tl.arange(0, SLOTS)
        d = tl.arange(0, BLOCK_D)
        filled = s < used
        if SHARED > 0:
            _, shared_used = prefix_range(common, SHARED, PREFIX_TILE)
            filled = filled | ((s >= num_splits) & (s < num_splits + shared_used))
        lse = tl.load(lse_ptr + row * num_slots + s, mask=filled, other=NEG)
        weight = tl.exp2(lse - tl.max(lse, 0))
        inside = filled[:, None] & (d < DIM)[None, :]
        part = tl.load(part_ptr + (row * num_slots + s[:, None]) * DIM + d[None, :], mask=inside, other=0.0)
        merged = tl.sum(part * weight[:, None], 0) / tl.sum(weight, 0)
        tl.store(out_ptr + row * DIM + d, merged.to(out_ptr.dtype.element_ty), mask=d < DIM)


def choose_splits(num_requests: int, num_kv_heads: int, max_seq_len: int, multiprocessors: int) -> tuple[int, int]:
    """(splits, keys that a split has at least). Enough programs to fill the device, no more than there are keys.

    At least MIN_SPLITS, so that a request much longer than the others does not end alone.
    """
    programs = num_requests * num_kv_heads
    room = PROGRAMS_PER_MULTIPROCESSOR * multiprocessors
    min_keys = 512
    if programs <= multiprocessors:
        min_keys = 64 if 4 * programs <= multiprocessors else 256
    splits = min(MAX_SPLITS, max(MIN_SPLITS, room // programs), -(-max_seq_len // min_keys))
    # a power of two: the merge is compiled for each of the few, at the start
    return triton.next_power_of_2(max(1, splits)), min_keys


def choose_config(pairs: int, multiprocessors: int, dim: int, itemsize: int) -> DecodeConfig:
    """pairs: of a request and a key head."""
    if dim > 128 or itemsize > 2:
        return DecodeConfig(32, 2, 4)
    return FEW if pairs <= multiprocessors else MANY


def decode_attention(
    spec: AttentionSpec,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    block_table: torch.Tensor,
    seq_lens: torch.Tensor,
    out: torch.Tensor,
    max_seq_len: int,
    slopes: torch.Tensor | None = None,
    splits: tuple[int, int] | None = None,
    config: DecodeConfig | None = None,
    common: torch.Tensor | None = None,
) -> None:
    """query: [R, num_heads, head_dim], heads together, rows may lie apart; out: [R, num_heads, head_dim] contiguous.

    keys, values: [num_blocks, block_size, num_kv_heads, head_dim] contiguous; block_table: int32 [R, ...];
    seq_lens: int32 [R], 0 for a row of padding (its output is zeros). max_seq_len bounds the splits, nothing else.
    slopes: float32 [num_heads], ALiBi's, times log2(e). common: int32 [1], the first so many keys (whole blocks, fewer
    than any request has) lie in the same blocks for all requests and are read once.
    """
    num_requests, num_heads, dim = query.shape
    if query.stride(2) != 1 or query.stride(1) != dim or not out.is_contiguous():
        raise ValueError("the heads of a query must lie together, and the output must be contiguous")
    if num_heads % spec.num_kv_heads:
        raise ValueError(f"{num_heads} query heads do not divide among {spec.num_kv_heads} key heads")
    if num_requests == 0:
        return
    multiprocessors = num_multiprocessors(query)
    num_splits, min_keys = splits or choose_splits(num_requests, spec.num_kv_heads, max_seq_len, multiprocessors)
    config = config or choose_config(num_requests * spec.num_kv_heads, multiprocessors, dim, query.element_size())
    group = num_heads // spec.num_kv_heads
    block_d = max(16, triton.next_power_of_2(dim))  # what a matrix instruction takes at least
    window = spec.window or 0
    cap = spec.soft_cap is not None
    scale = spec.scale if cap else spec.scale * math.log2(math.e)
    if window or slopes is not None:
        common = None
    shared = 0 if common is None else choose_prefix_splits(query, spec.num_kv_heads)
    num_slots = num_splits + shared
    part = lse = out
    if num_slots > 1:
        part = torch.empty(num_requests * num_heads * num_slots, dim, dtype=torch.float32, device=query.device)
        lse = torch.empty(num_requests * num_heads * num_slots, dtype=torch.float32, device=query.device)
    if common is not None:
        prefix_attention(
            spec, query, keys, values, block_table, common, part, lse, num_slots, num_splits, shared, scale
        )
    common_or_any = seq_lens if common is None else common
    pdl = has_pdl(query)
    launch(
        _decode_kernel, (spec.num_kv_heads, num_splits, num_requests),
        query, keys, values, block_table, seq_lens, common_or_any, out, part, lse,
        seq_lens if slopes is None else slopes,
        query.stride(0), block_table.stride(0), keys.stride(0), keys.stride(1),
        scale, spec.soft_cap or 1.0, num_splits, num_slots, min_keys,
        GROUP=group, ROWS=max(16, triton.next_power_of_2(group)), DIM=dim, BLOCK_D=block_d, KEYS=config.keys,
        BLOCK_SIZE=keys.shape[1], WINDOW=window, CAP=cap, ALIBI=slopes is not None, STAGES=config.stages, SHARED=shared,
        PRECISION="ieee" if query.dtype == torch.float32 else "tf32", PDL=pdl,
        **options(pdl, num_warps=config.warps),
    )  # fmt: skip
    if num_slots > 1:
        launch(
            _merge_kernel, (num_requests * num_heads,),
            part, lse, seq_lens, common_or_any, out, num_splits, num_slots, min_keys,
            HEADS=num_heads, DIM=dim, BLOCK_D=block_d, SLOTS=triton.next_power_of_2(num_slots), KEYS=config.keys,
            WINDOW=window, SHARED=shared, PREFIX_TILE=prefix_tile(query), PDL=pdl,
            **options(pdl, num_warps=4 if num_slots > 16 else 2),
        )  # fmt: skip
