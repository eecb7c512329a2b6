"""Decode attention over the paged cache: one new token a request, every program the same share of all keys.

The keys of all requests, in tiles, stand in one row; each program takes an even piece of it for one key head, so a
request may be spread over several programs, and a program may end one request and begin the next. The last of a
request's programs to arrive join what they found. Lengths and block tables are read from device memory, so a captured
graph serves every batch up to its size. The query heads that share a key head are the rows of one tile.
Source: PagedAttention, arXiv:2309.06180; Flash-Decoding, https://crfm.stanford.edu/2023/10/12/flashdecoding.html;
Stream-K, arXiv:2301.03598. The specification is plugins/attention/torch/reference.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from core.interfaces.attention import AttentionSpec
from core.kernels.launch import has_pdl, launch, next_power_of_2, num_multiprocessors, options
from core.kernels.skinny_linear import prefetch
from core.kernels.workspace import workspace
from plugins.attention.triton.shared_prefix import choose_prefix_splits, prefix_attention, prefix_range, prefix_tile

NEG = tl.constexpr(-1.0e30)
PIECES = tl.constexpr(8)
"""Of a request's results that are read at a time."""
AHEAD = tl.constexpr(2)
"""Tiles of keys that a program brings to the L2 cache while the kernel before ends."""
REQUESTS = (256, 1024, 4096)
"""Batches up to these sizes have a compiled kernel each, for it adds up the lengths of all requests; larger ones have one for
every power of two."""


@dataclass(frozen=True, slots=True, order=True)
class DecodeConfig:
    keys: int
    """Keys in a tile."""
    stages: int
    warps: int
    programs: int
    """On each multiprocessor, at once."""


NARROW = DecodeConfig(16, 4, 1, 8)
WIDE = DecodeConfig(32, 2, 4, 2)
"""Heads of more than 128, or float32."""


@triton.jit
def _first_key(length, common, WINDOW: tl.constexpr):
    """The first key that is seen and not read elsewhere (the first `common` are)."""
    low = common
    if WINDOW > 0:
        low = tl.maximum(length - WINDOW, 0)
    return low


@triton.jit
def _tiles(length, common, WINDOW: tl.constexpr, KEYS: tl.constexpr):
    """One at least: a row that only fills a captured graph up is written too."""
    return tl.maximum(tl.cdiv(length - _first_key(length, common, WINDOW), KEYS), 1)


@triton.jit
def _whose(tile, per, extra):
    """The program that has this tile; the first `extra` have per + 1, the others per."""
    long = extra * (per + 1)
    return tl.where(tile < long, tile // (per + 1), extra + (tile - long) // per)


@triton.jit(do_not_specialize=["num_requests", "num_splits"])
def _decode_kernel(
    q_ptr, keys_ptr, values_ptr, table_ptr, lengths_ptr, common_ptr, out_ptr, part_ptr, lse_ptr, count_ptr,
    shared_ptr, shared_lse_ptr, slopes_ptr,
    stride_q, stride_table, stride_block, stride_slot, qk_scale, soft_cap, num_requests, num_splits,
    REQUESTS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr,
    BLOCK_D: tl.constexpr, KEYS: tl.constexpr, BLOCK_SIZE: tl.constexpr, WINDOW: tl.constexpr,
    CAP: tl.constexpr, ALIBI: tl.constexpr, STAGES: tl.constexpr, SHARED: tl.constexpr, PREFIX_TILE: tl.constexpr,
    PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: one key head, an even share of all requests' tiles.

    part: float32 [programs, heads, 2, GROUP, DIM], what a program found of a request that is not all its own: place 1
    if it has the request's beginning, else 0. lse: its log-sum-exp, base 2. count: int32, zeros: for each
    place how many of the PIECES programs from it on are through; behind them, [programs, heads], how many such batches.
    """
    head, program = tl.program_id(0), tl.program_id(1)
    if PDL:
        gdc_launch_dependents()
    common = 0
    if SHARED:
        common = tl.load(common_ptr)
    i = tl.arange(0, REQUESTS)
    lengths = tl.load(lengths_ptr + i, mask=i < num_requests, other=0)
    ends = tl.cumsum(tl.where(i < num_requests, _tiles(lengths, common, WINDOW, KEYS), 0), 0)
    total_tiles = tl.max(ends, 0)
    used = tl.minimum(tl.num_programs(1), total_tiles)
    per = total_tiles // used
    extra = total_tiles - per * used
    tile = program * per + tl.minimum(program, extra)
    stop = tile + per + (program < extra).to(tl.int32)
    before = ends <= tile
    request = tl.sum(before.to(tl.int32), 0).to(tl.int64)
    begin = tl.max(tl.where(before, ends, 0), 0)
    if PDL:
        if program < used:
            # all but the newest key were there before the step: bring the first ones to the L2 cache
            length = tl.load(lengths_ptr + request)
            start = _first_key(length, common, WINDOW) + (tile - begin) * KEYS
            key_at = start + tl.arange(0, AHEAD * KEYS)
            seen = key_at < tl.minimum(length, start + (stop - tile) * KEYS)
            block = tl.load(table_ptr + request * stride_table + key_at // BLOCK_SIZE, mask=seen, other=0)
            place = block.to(tl.int64) * stride_block + (key_at % BLOCK_SIZE) * stride_slot + head * DIM
            LINE: tl.constexpr = 1024 // keys_ptr.dtype.element_ty.primitive_bitwidth
            line = tl.minimum(tl.arange(0, (BLOCK_D + LINE - 1) // LINE) * LINE, DIM - 1)
            prefetch(keys_ptr + place[:, None] + line[None, :])
            prefetch(values_ptr + place[:, None] + line[None, :])
        gdc_wait()
    if program < used:
        r = tl.arange(0, ROWS)
        d = tl.arange(0, BLOCK_D)
        n = tl.arange(0, KEYS)
        # [ROWS, BLOCK_D]
        mine = (r < GROUP)[:, None] & (d < DIM)[None, :]
        if ALIBI:
            slope = tl.load(slopes_ptr + head * GROUP + r, mask=r < GROUP, other=0.0)
        while tile < stop:
            length = tl.load(lengths_ptr + request)
            num_tiles = _tiles(length, common, WINDOW, KEYS)
            taken = tl.minimum(begin + num_tiles, stop) - tile
            start = _first_key(length, common, WINDOW) + (tile - begin) * KEYS
            end = tl.minimum(length, start + taken * KEYS)
            q_at = request * stride_q + (head * GROUP + r)[:, None] * DIM + d[None, :]
            q = tl.load(q_ptr + q_at, mask=mine, other=0.0)
            m = tl.full([ROWS], NEG, tl.float32)
            total = tl.zeros([ROWS], tl.float32)
            acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
            for at in tl.range(start, end, KEYS, num_stages=STAGES):
                key_at = at + n
                seen = key_at < end
                block = tl.load(table_ptr + request * stride_table + key_at // BLOCK_SIZE, mask=seen, other=0)
                # [KEYS, BLOCK_D]
                place = block.to(tl.int64) * stride_block + (key_at % BLOCK_SIZE) * stride_slot + head * DIM
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
            out_row = (request * HEADS + head) * GROUP + r
            if SHARED:
                _, used_splits = prefix_range(common, num_splits, PREFIX_TILE)
                # once for a request: with its beginning
                for s in tl.range(0, tl.where((tile == begin) & (length > 0), used_splits, 0), num_stages=2):
                    row = out_row * num_splits + s
                    lse = tl.load(shared_lse_ptr + row, mask=r < GROUP, other=NEG)
                    part = tl.load(shared_ptr + row[:, None] * DIM + d[None, :], mask=mine, other=0.0)
                    m_new = tl.maximum(m, lse)
                    scale = tl.exp2(m - m_new)
                    weight = tl.exp2(lse - m_new)
                    total = total * scale + weight
                    acc = acc * scale[:, None] + part * weight[:, None]
                    m = m_new
            # no key at all: a row that only fills a captured graph up is finite, whatever reads it
            acc = acc / tl.where(length > 0, total, 1.0)[:, None]
            first, last = _whose(begin, per, extra), _whose(begin + num_tiles - 1, per, extra)
            if first == last:
                tl.store(out_ptr + out_row[:, None] * DIM + d[None, :], acc.to(out_ptr.dtype.element_ty), mask=mine)
            else:
                row = ((program * HEADS + head) * 2 + (tile == begin).to(tl.int32)) * GROUP + r
                tl.store(part_ptr + row[:, None] * DIM + d[None, :], acc, mask=mine)
                tl.store(lse_ptr + row, m + tl.log2(total), mask=r < GROUP)
                tl.debug_barrier()
                # the last of each few programs joins theirs, the last of those the rest
                leader = first + (program - first) // PIECES * PIECES
                few = tl.minimum(last - leader + 1, PIECES)
                # a program that ends one request and begins another can lead in both
                spot = (leader * HEADS + head) * 2 + (leader == first).to(tl.int32)
                if tl.atomic_add(count_ptr + spot, 1, sem="acq_rel") == few - 1:
                    tl.store(count_ptr + spot, 0)  # ready for the next launch
                    joined, lse = _join(part_ptr, lse_ptr, first, leader, few, 1, head, GROUP, HEADS, DIM, BLOCK_D)
                    batches = tl.cdiv(last - first + 1, PIECES)
                    done = batches == 1
                    if batches > 1:
                        _store_joined(part_ptr, lse_ptr, joined, lse, spot * GROUP, GROUP, DIM, BLOCK_D)
                        at = (2 * tl.num_programs(1) + first) * HEADS + head
                        if tl.atomic_add(count_ptr + at, 1, sem="acq_rel") == batches - 1:
                            tl.store(count_ptr + at, 0)
                            joined, lse = _join(
                                part_ptr, lse_ptr, first, first, batches, PIECES, head, GROUP, HEADS, DIM, BLOCK_D
                            )
                            done = True
                    if done:
                        g = tl.arange(0, joined.shape[0])
                        tl.store(
                            out_ptr + ((request * HEADS + head) * GROUP + g)[:, None] * DIM + d[None, :],
                            joined.to(out_ptr.dtype.element_ty),
                            mask=(g < GROUP)[:, None] & (d < DIM)[None, :],
                        )
            tile += taken
            begin += num_tiles
            request += 1


@triton.jit
def _join(
    part_ptr, lse_ptr, first, begin, count, STRIDE: tl.constexpr, head,
    GROUP: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """What `count` programs from `begin` on, STRIDE apart, left of a request whose first program is `first`.

    -> float32 [GROUP, DIM] and the log-sum-exp, base 2, [GROUP]; both padded to powers of two
    """
    G: tl.constexpr = triton.next_power_of_2(GROUP)
    g = tl.arange(0, G)
    d = tl.arange(0, BLOCK_D)
    m = tl.full([G], NEG, tl.float32)
    total = tl.zeros([G], tl.float32)
    acc = tl.zeros([G, BLOCK_D], tl.float32)
    for at in range(0, count, PIECES):
        i = at + tl.arange(0, PIECES)
        piece = begin + i * STRIDE
        # [PIECES, G]
        row = ((piece * HEADS + head) * 2 + (piece == first).to(tl.int32))[:, None] * GROUP + g[None, :]
        there = (i < count)[:, None] & (g < GROUP)[None, :]
        lse = tl.load(lse_ptr + row, mask=there, other=NEG, cache_modifier=".cg")
        inside = there[:, :, None] & (d < DIM)[None, None, :]
        part = tl.load(
            part_ptr + row[:, :, None] * DIM + d[None, None, :], mask=inside, other=0.0, cache_modifier=".cg"
        )
        m_new = tl.maximum(m, tl.max(lse, 0))
        weight = tl.exp2(lse - m_new[None, :])
        scale = tl.exp2(m - m_new)
        total = total * scale + tl.sum(weight, 0)
        acc = acc * scale[:, None] + tl.sum(part * weight[:, :, None], 0)
        m = m_new
    return acc / total[:, None], m + tl.log2(total)


@triton.jit
def _store_joined(part_ptr, lse_ptr, joined, lse, row, GROUP: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """In place of the first of those that were joined."""
    g = tl.arange(0, joined.shape[0])
    d = tl.arange(0, BLOCK_D)
    tl.debug_barrier()  # everything is read
    inside = (g < GROUP)[:, None] & (d < DIM)[None, :]
    tl.store(part_ptr + (row + g)[:, None] * DIM + d[None, :], joined, mask=inside)
    tl.store(lse_ptr + row + g, lse, mask=g < GROUP)
    tl.debug_barrier()


def choose_config(dim: int, itemsize: int) -> DecodeConfig:
    return WIDE if dim > 128 or itemsize > 2 else NARROW


def decode_attention(
    spec: AttentionSpec,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    block_table: torch.Tensor,
    seq_lens: torch.Tensor,
    out: torch.Tensor,
    slopes: torch.Tensor | None = None,
    config: DecodeConfig | None = None,
    common: torch.Tensor | None = None,
) -> None:
    """query: [R, num_heads, head_dim], heads together, rows may lie apart; out: [R, num_heads, head_dim] contiguous.

    keys, values: [num_blocks, block_size, num_kv_heads, head_dim] contiguous; block_table: int32 [R, ...];
    seq_lens: int32 [R], 0 for a row of padding (its output is zeros). Neither is made by the kernel in front, which need
    not have ended when they are read.
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
    config = config or choose_config(dim, query.element_size())
    group, heads = num_heads // spec.num_kv_heads, spec.num_kv_heads
    programs = max(1, config.programs * num_multiprocessors(query) // heads)
    window = spec.window or 0
    cap = spec.soft_cap is not None
    scale = spec.scale if cap else spec.scale * math.log2(math.e)
    if window or slopes is not None:
        common = None
    shared = 0
    shared_part = shared_lse = out
    if common is not None:
        shared = choose_prefix_splits(query, heads)
        rows = num_requests * num_heads * shared
        shared_part = torch.empty(rows, dim, dtype=torch.float32, device=query.device)
        shared_lse = torch.empty(rows, dtype=torch.float32, device=query.device)
        prefix_attention(spec, query, keys, values, block_table, common, shared_part, shared_lse, shared, scale)
    places = programs * heads * 2 * group
    floats, counts = workspace(query.device, places * (dim + 1), 3 * programs * heads)
    pdl = has_pdl(query)
    launch(
        _decode_kernel, (heads, programs),
        query, keys, values, block_table, seq_lens, seq_lens if common is None else common, out,
        floats, floats[places * dim :], counts, shared_part, shared_lse, seq_lens if slopes is None else slopes,
        query.stride(0), block_table.stride(0), keys.stride(0), keys.stride(1),
        scale, spec.soft_cap or 1.0, num_requests, shared,
        REQUESTS=next((n for n in REQUESTS if num_requests <= n), next_power_of_2(num_requests)), GROUP=group,
        ROWS=max(16, next_power_of_2(group)), HEADS=heads, DIM=dim,
        BLOCK_D=max(16, next_power_of_2(dim)),  # what a matrix instruction takes at least
        KEYS=config.keys, BLOCK_SIZE=keys.shape[1], WINDOW=window, CAP=cap,
        ALIBI=slopes is not None, STAGES=config.stages, SHARED=shared > 0, PREFIX_TILE=prefix_tile(query),
        PRECISION="ieee" if query.dtype == torch.float32 else "tf32", PDL=pdl,
        **options(pdl, num_warps=config.warps),
    )  # fmt: skip
