"""Logits -> tokens in one kernel: bitmask, temperature, min-p, top-k, top-p and the draw, without sorting the vocabulary.

Thresholds are found by bisection on the bits of the logits (which order as the numbers do, once negatives are turned
round), so they are exact; equal logits stay or go together. A draw inverts the cumulative distribution at one uniform
number per (seed, position), the same as core/sampling/random.py gives. The specification is core/sampling/sampler.py.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from core.kernels.launch import has_pdl, launch, next_power_of_2, options

# One program a row. H100: not measured yet.
BLOCK = 8192
WARPS = 16


@triton.jit
def _ordered(x):
    """float32 -> int32 that orders alike."""
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _mix(v):
    """splitmix64's finalizer"""
    v = (v ^ (v >> 30)) * 0xBF58476D1CE4E5B9
    v = (v ^ (v >> 27)) * 0x94D049BB133111EB
    return v ^ (v >> 31)


@triton.jit
def _load(
    logits_ptr, mask_ptr, at, V, BLOCK_V: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """float32 [BLOCK_V]; -inf outside of the vocabulary, and where the bitmask forbids"""
    i = at + tl.arange(0, BLOCK_V)
    x = tl.load(logits_ptr + i, mask=i < V, other=float("-inf")).to(tl.float32)
    if MASKED:
        word = tl.load(mask_ptr + i // 32, mask=i < V, other=0)
        x = tl.where(((word >> (i % 32)) & 1) != 0, x, float("-inf"))
    return x


@triton.jit
def _sample_kernel(
    logits_ptr, rows_ptr, floats_ptr, top_k_ptr, seeds_ptr, positions_ptr, mask_rows_ptr, masks_ptr,
    out_ptr, finite_ptr, token_ids_ptr, stride_logits, stride_floats, stride_mask, stride_tokens, V,
    BLOCK_V: tl.constexpr, BITS: tl.constexpr, MASKED: tl.constexpr, RANDOM: tl.constexpr, WRITE: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.load(rows_ptr + i).to(tl.int64)
    position = tl.load(positions_ptr + i).to(tl.int64)
    source = logits_ptr + i * stride_logits
    n = tl.arange(0, BLOCK_V)
    mask_source = masks_ptr
    if MASKED:
        mask_source += tl.load(mask_rows_ptr + i).to(tl.int64) * stride_mask
    # the largest logit and its place
    best = tl.full([BLOCK_V], float("-inf"), tl.float32)
    place = tl.zeros([BLOCK_V], tl.int32)
    broken = tl.zeros([BLOCK_V], tl.int32)
    for at in range(0, V, BLOCK_V):
        x = _load(source, mask_source, at, V, BLOCK_V, MASKED)
        broken += tl.where(x != x, 1, 0)
        better = x > best
        best = tl.where(better, x, best)
        place = tl.where(better, at + n, place)
    top = tl.max(best, 0)
    token = tl.min(tl.where(best == top, place, 2147483647), 0)
    is_finite = (tl.sum(broken, 0) == 0) & (top > float("-inf")) & (top < float("inf"))
    token = tl.where(is_finite, token, 0)
    if RANDOM:
        temperature = tl.load(floats_ptr + row * stride_floats)
        if (temperature > 0) & is_finite:
            top_p = tl.load(floats_ptr + row * stride_floats + 1)
            min_p = tl.load(floats_ptr + row * stride_floats + 2)
            k = tl.load(top_k_ptr + row).to(tl.int32)
            scale = 1.4426950408889634 / temperature
            ceiling = _ordered(top)
            # everything finite stays at first
            least = _ordered(tl.full([1], -3.4028234663852886e38, tl.float32))
            low = tl.sum(least, 0)
            if min_p > 0:
                bound = top + tl.log2(min_p) / scale
                low = tl.maximum(low, tl.sum(_ordered(tl.zeros([1], tl.float32) + bound), 0))
            # bisect over multiples of 1 << BITS alone where the logits have no finer ones
            if (k > 0) & (k < V):
                # int64: the distance of two int32 may not fit one
                a = (low >> BITS).to(tl.int64)
                b = (ceiling >> BITS).to(tl.int64) + 1
                while b - a > 1:
                    # three bounds at a time: half the passes
                    m1, m2, m3 = a + (b - a) // 4, a + (b - a) // 2, a + (b - a) * 3 // 4
                    n1 = tl.zeros([BLOCK_V], tl.int32)
                    n2 = tl.zeros([BLOCK_V], tl.int32)
                    n3 = tl.zeros([BLOCK_V], tl.int32)
                    for at in tl.range(0, V, BLOCK_V, loop_unroll_factor=4):
                        ordered = _ordered(_load(source, mask_source, at, V, BLOCK_V, MASKED))
                        n1 += tl.where(ordered >= (m1 << BITS), 1, 0)
                        n2 += tl.where(ordered >= (m2 << BITS), 1, 0)
                        n3 += tl.where(ordered >= (m3 << BITS), 1, 0)
                    h1, h2, h3 = tl.sum(n1, 0), tl.sum(n2, 0), tl.sum(n3, 0)
                    new_a = tl.where(h3 >= k, m3, tl.where(h2 >= k, m2, tl.where(h1 >= k, m1, a)))
                    have = tl.where(h3 >= k, h3, tl.where(h2 >= k, h2, tl.where(h1 >= k, h1, 0)))
                    b = tl.where(h1 < k, m1, tl.where(h2 < k, m2, tl.where(h3 < k, m3, b)))
                    a = new_a
                    b = tl.where(have == k, a + 1, b)
                low = tl.maximum(low, (a << BITS).to(tl.int32))
            if top_p < 1:
                mass = tl.zeros([BLOCK_V], tl.float32)
                for at in tl.range(0, V, BLOCK_V, loop_unroll_factor=4):
                    x = _load(source, mask_source, at, V, BLOCK_V, MASKED)
                    mass += tl.where(_ordered(x) >= low, tl.exp2((x - top) * scale), 0.0)
                wanted = tl.sum(mass, 0) * top_p
                # int64: the distance of two int32 may not fit one
                a = (low >> BITS).to(tl.int64)
                b = (ceiling >> BITS).to(tl.int64) + 1
                while b - a > 1:
                    m1, m2, m3 = a + (b - a) // 4, a + (b - a) // 2, a + (b - a) * 3 // 4
                    p1 = tl.zeros([BLOCK_V], tl.float32)
                    p2 = tl.zeros([BLOCK_V], tl.float32)
                    p3 = tl.zeros([BLOCK_V], tl.float32)
                    for at in tl.range(0, V, BLOCK_V, loop_unroll_factor=4):
                        x = _load(source, mask_source, at, V, BLOCK_V, MASKED)
                        ordered = _ordered(x)
                        p = tl.exp2((x - top) * scale)
                        p1 += tl.where(ordered >= (m1 << BITS), p, 0.0)
                        p2 += tl.where(ordered >= (m2 << BITS), p, 0.0)
                        p3 += tl.where(ordered >= (m3 << BITS), p, 0.0)
                    h1, h2, h3 = tl.sum(p1, 0), tl.sum(p2, 0), tl.sum(p3, 0)
                    new_a = tl.where(h3 >= wanted, m3, tl.where(h2 >= wanted, m2, tl.where(h1 >= wanted, m1, a)))
                    b = tl.where(h1 < wanted, m1, tl.where(h2 < wanted, m2, tl.where(h3 < wanted, m3, b)))
                    a = new_a
                low = tl.maximum(low, (a << BITS).to(tl.int32))
            seed = tl.load(seeds_ptr + row).to(tl.uint64, bitcast=True)
            counter = (position + 1).to(tl.uint64, bitcast=True) * 0x9E3779B97F4A7C15
            draw = (_mix(_mix(seed) + counter) >> 40).to(tl.float32) * 5.9604644775390625e-08
            mass = tl.zeros([BLOCK_V], tl.float32)
            for at in tl.range(0, V, BLOCK_V, loop_unroll_factor=4):
                x = _load(source, mask_source, at, V, BLOCK_V, MASKED)
                mass += tl.where(_ordered(x) >= low, tl.exp2((x - top) * scale), 0.0)
            target = draw * tl.sum(mass, 0)
            # walk the blocks until the target is passed; rounding may leave it unpassed: then the last one that stays
            before = target * 0.0
            chosen = token * 0 - 1
            last = token
            at = 0
            while (at < V) & (chosen < 0):
                x = _load(source, mask_source, at, V, BLOCK_V, MASKED)
                p = tl.where(_ordered(x) >= low, tl.exp2((x - top) * scale), 0.0)
                here = tl.sum(p, 0)
                last = tl.maximum(last, tl.max(tl.where(p > 0, at + n, -1), 0))
                if before + here > target:
                    passed = (before + tl.cumsum(p, 0) > target) & (p > 0)
                    found = tl.min(tl.where(passed, at + n, 2147483647), 0)
                    chosen = tl.where(found < 2147483647, found, last)
                before += here
                at += BLOCK_V
            token = tl.where(chosen >= 0, chosen, last)
    tl.store(out_ptr + i, token.to(tl.int64))
    tl.store(finite_ptr + i, is_finite.to(tl.int8))
    if WRITE:
        tl.store(token_ids_ptr + row * stride_tokens + position, token.to(token_ids_ptr.dtype.element_ty))


def sample(
    logits: torch.Tensor,
    rows: torch.Tensor,
    floats: torch.Tensor,
    top_k: torch.Tensor,
    seeds: torch.Tensor,
    positions: torch.Tensor,
    *,
    is_random: bool = True,
    masks: tuple[torch.Tensor, torch.Tensor] | None = None,
    token_ids: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose one token a row of logits.

    logits: [n, vocab], any float type; rows: int64 [n], the row of each in floats (columns temperature, top_p, min_p),
    top_k and seeds (core/sampling/rows.py); positions: int64 [n], the new token's place in its sequence. masks: (int64
    [n] line in the bits, int32 [lines, words]); a line of ones for whoever is free. token_ids: int32 [rows, length],
    where the tokens are written as well. -> tokens int64 [n], finite bool [n] (False: the token means nothing)
    """
    count, vocab = logits.shape
    if logits.stride(1) != 1:
        raise ValueError("the logits of a row must lie together")
    out = torch.empty(count, dtype=torch.int64, device=logits.device)
    finite = torch.empty(count, dtype=torch.int8, device=logits.device)
    if count == 0:
        return out, finite.bool()
    mask_rows, bits = masks if masks is not None else (rows, rows)
    bits_free = {torch.bfloat16: 16, torch.float16: 13, torch.float32: 0}[logits.dtype]
    pdl = has_pdl(logits)
    block = min(BLOCK, next_power_of_2(vocab))
    launch(
        _sample_kernel, (count,),
        logits, rows, floats, top_k, seeds, positions, mask_rows, bits, out, finite,
        out if token_ids is None else token_ids,
        logits.stride(0), floats.stride(0), bits.stride(0), 0 if token_ids is None else token_ids.stride(0), vocab,
        BLOCK_V=block, BITS=bits_free, MASKED=masks is not None, RANDOM=is_random, WRITE=token_ids is not None,
        PDL=pdl, **options(pdl, num_warps=WARPS if logits.is_cuda else 1),
    )  # fmt: skip
    return out, finite.bool()
