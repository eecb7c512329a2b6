"""Logits -> tokens: bitmask, temperature, min-p, top-k, top-p and the draw, without sorting the vocabulary.

Two kernels. The first surveys the vocabulary, many programs a row: of every piece the largest logit, its place and the mass
of all, and the largest logit of every chunk of 64. The second chooses, one program a row. Without filters it walks the piece
in which the draw falls. With filters the largest chunks hold all that can stay, as a rule: their logits fit in registers.
Where they do not (top-p of a flat distribution), thresholds are found over the whole row.

Thresholds are found by bisection on the bits of the logits (which order as the numbers do, once negatives are turned
round), so they are exact; equal logits stay or go together. A draw inverts the cumulative distribution at one uniform
number per (seed, position), the same as core/sampling/random.py gives. The specification is core/sampling/sampler.py.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from core.kernels.launch import cdiv, has_pdl, launch, next_power_of_2, options

PIECE = 4096
"""Logits of a program of the first kernel."""
CHUNK = 64
MOST_CHUNKS = 128
"""That the second kernel holds in registers."""
WARPS = 4
CHOOSE_WARPS = 8


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
def _load(logits_ptr, mask_ptr, at, is_there, masked):
    """float32; -inf where nothing is there, and where the bitmask forbids"""
    x = tl.load(logits_ptr + at, mask=is_there, other=float("-inf")).to(tl.float32)
    if masked:
        word = tl.load(mask_ptr + at // 32, mask=is_there, other=0)
        x = tl.where(((word >> (at % 32)) & 1) != 0, x, float("-inf"))
    return x


@triton.jit(do_not_specialize=["masked", "stride_mask"])
def _survey_kernel(
    logits_ptr, rows_ptr, floats_ptr, mask_rows_ptr, masks_ptr, survey_ptr,
    stride_logits, stride_floats, stride_mask, masked, V,
    CHUNKS: tl.constexpr, SIZE: tl.constexpr, RANDOM: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One piece of a row: CHUNKS chunks of SIZE logits.

    survey_ptr: float32 [rows, pieces, 4], the largest, its place, how many are NaN, the mass; behind it [rows, chunks], the
    largest of each.
    """
    i, piece = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    mask_source = masks_ptr
    if masked:
        mask_source += tl.load(mask_rows_ptr + i).to(tl.int64) * stride_mask
    at = (piece * CHUNKS + tl.arange(0, CHUNKS)[:, None]) * SIZE + tl.arange(0, SIZE)[None, :]
    x = _load(logits_ptr + i * stride_logits, mask_source, at, at < V, masked)
    tops = tl.max(x, 1)
    top = tl.max(tops, 0)
    place = tl.min(tl.min(tl.where(x == top, at, 2147483647), 1), 0)
    broken = tl.sum(tl.sum(tl.where(x != x, 1, 0), 1), 0)
    num_pieces = tl.num_programs(1)
    number = i * num_pieces + piece
    mine = survey_ptr + number * 4
    tl.store(mine, top)
    tl.store(mine + 1, place.to(tl.float32))
    tl.store(mine + 2, broken.to(tl.float32))
    if RANDOM:
        chunks = survey_ptr + tl.num_programs(0).to(tl.int64) * num_pieces * 4
        tl.store(chunks + number * CHUNKS + tl.arange(0, CHUNKS), tops)
        temperature = tl.load(floats_ptr + tl.load(rows_ptr + i).to(tl.int64) * stride_floats)
        if temperature > 0:
            base = tl.where(top > float("-inf"), top, 0.0)
            mass = tl.sum(tl.sum(tl.exp2((x - base) * (1.4426950408889634 / temperature)), 1), 0)
            tl.store(mine + 3, mass)


@triton.jit
def _reached_by(ordered, low, ceiling, k, BITS: tl.constexpr):
    """The greatest bound that k of the numbers reach, or `low` if fewer reach that; a multiple of 1 << BITS."""
    # int64: the distance of two int32 may not fit one
    a = (low >> BITS).to(tl.int64)
    b = (ceiling >> BITS).to(tl.int64) + 1
    while b - a > 1:
        # three bounds at a time: half the passes
        m1, m2, m3 = a + (b - a) // 4, a + (b - a) // 2, a + (b - a) * 3 // 4
        h1 = tl.sum(tl.where(ordered >= (m1 << BITS).to(tl.int32), 1, 0), 0)
        h2 = tl.sum(tl.where(ordered >= (m2 << BITS).to(tl.int32), 1, 0), 0)
        h3 = tl.sum(tl.where(ordered >= (m3 << BITS).to(tl.int32), 1, 0), 0)
        new_a = tl.where(h3 >= k, m3, tl.where(h2 >= k, m2, tl.where(h1 >= k, m1, a)))
        have = tl.where(h3 >= k, h3, tl.where(h2 >= k, h2, tl.where(h1 >= k, h1, 0)))
        b = tl.where(h1 < k, m1, tl.where(h2 < k, m2, tl.where(h3 < k, m3, b)))
        a = new_a
        b = tl.where(have == k, a + 1, b)
    return (a << BITS).to(tl.int32)


@triton.jit
def _holding(ordered, mass, low, ceiling, wanted, BITS: tl.constexpr):
    """The greatest bound above which there is the mass that is wanted; a multiple of 1 << BITS."""
    a = (low >> BITS).to(tl.int64)
    b = (ceiling >> BITS).to(tl.int64) + 1
    while b - a > 1:
        m1, m2, m3 = a + (b - a) // 4, a + (b - a) // 2, a + (b - a) * 3 // 4
        h1 = tl.sum(tl.where(ordered >= (m1 << BITS).to(tl.int32), mass, 0.0), 0)
        h2 = tl.sum(tl.where(ordered >= (m2 << BITS).to(tl.int32), mass, 0.0), 0)
        h3 = tl.sum(tl.where(ordered >= (m3 << BITS).to(tl.int32), mass, 0.0), 0)
        new_a = tl.where(h3 >= wanted, m3, tl.where(h2 >= wanted, m2, tl.where(h1 >= wanted, m1, a)))
        b = tl.where(h1 < wanted, m1, tl.where(h2 < wanted, m2, tl.where(h3 < wanted, m3, b)))
        a = new_a
    return (a << BITS).to(tl.int32)


@triton.jit
def _whole_row_bound(
    source, mask_source, masked, low, high, top, scale, k, top_p, total, V, BLOCK_V: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """The least logit that stays, ordered, by passes over the whole row; `high` is known to be reached by too few.

    k 0: no top-k; total: the mass that top-p is a share of then, 0 if it is not known
    """
    n = tl.arange(0, BLOCK_V)
    if k > 0:
        a = (low >> BITS).to(tl.int64)
        b = (high >> BITS).to(tl.int64)
        while b - a > 1:
            m1, m2, m3 = a + (b - a) // 4, a + (b - a) // 2, a + (b - a) * 3 // 4
            n1 = tl.zeros([BLOCK_V], tl.int32)
            n2 = tl.zeros([BLOCK_V], tl.int32)
            n3 = tl.zeros([BLOCK_V], tl.int32)
            for at in tl.range(0, V, BLOCK_V):
                ordered = _ordered(_load(source, mask_source, at + n, at + n < V, masked))
                n1 += tl.where(ordered >= (m1 << BITS).to(tl.int32), 1, 0)
                n2 += tl.where(ordered >= (m2 << BITS).to(tl.int32), 1, 0)
                n3 += tl.where(ordered >= (m3 << BITS).to(tl.int32), 1, 0)
            h1, h2, h3 = tl.sum(n1, 0), tl.sum(n2, 0), tl.sum(n3, 0)
            new_a = tl.where(h3 >= k, m3, tl.where(h2 >= k, m2, tl.where(h1 >= k, m1, a)))
            have = tl.where(h3 >= k, h3, tl.where(h2 >= k, h2, tl.where(h1 >= k, h1, 0)))
            b = tl.where(h1 < k, m1, tl.where(h2 < k, m2, tl.where(h3 < k, m3, b)))
            a = new_a
            b = tl.where(have == k, a + 1, b)
        low = tl.maximum(low, (a << BITS).to(tl.int32))
        high = tl.sum(_ordered(tl.zeros([1], tl.float32) + top), 0) + (1 << BITS)
    if top_p < 1:
        if total == 0:
            mass = tl.zeros([BLOCK_V], tl.float32)
            for at in tl.range(0, V, BLOCK_V):
                x = _load(source, mask_source, at + n, at + n < V, masked)
                mass += tl.where(_ordered(x) >= low, tl.exp2((x - top) * scale), 0.0)
            total = tl.sum(mass, 0)
        wanted = total * top_p
        # all tokens of half this mass or less make at most half of what goes: none of them stays
        least = top + tl.log2((1 - top_p) * total / (2 * V)) / scale
        a = (tl.maximum(low, tl.sum(_ordered(tl.zeros([1], tl.float32) + least), 0)) >> BITS).to(tl.int64)
        b = (high >> BITS).to(tl.int64)
        while b - a > 1:
            m1, m2, m3 = a + (b - a) // 4, a + (b - a) // 2, a + (b - a) * 3 // 4
            p1 = tl.zeros([BLOCK_V], tl.float32)
            p2 = tl.zeros([BLOCK_V], tl.float32)
            p3 = tl.zeros([BLOCK_V], tl.float32)
            for at in tl.range(0, V, BLOCK_V):
                x = _load(source, mask_source, at + n, at + n < V, masked)
                ordered = _ordered(x)
                p = tl.exp2((x - top) * scale)
                p1 += tl.where(ordered >= (m1 << BITS).to(tl.int32), p, 0.0)
                p2 += tl.where(ordered >= (m2 << BITS).to(tl.int32), p, 0.0)
                p3 += tl.where(ordered >= (m3 << BITS).to(tl.int32), p, 0.0)
            h1, h2, h3 = tl.sum(p1, 0), tl.sum(p2, 0), tl.sum(p3, 0)
            new_a = tl.where(h3 >= wanted, m3, tl.where(h2 >= wanted, m2, tl.where(h1 >= wanted, m1, a)))
            b = tl.where(h1 < wanted, m1, tl.where(h2 < wanted, m2, tl.where(h3 < wanted, m3, b)))
            a = new_a
        low = tl.maximum(low, (a << BITS).to(tl.int32))
    return low


@triton.jit(do_not_specialize=["masked", "stride_mask"])
def _choose_kernel(
    logits_ptr, rows_ptr, floats_ptr, top_k_ptr, seeds_ptr, positions_ptr, mask_rows_ptr, masks_ptr, survey_ptr,
    held_ptr, out_ptr, finite_ptr, token_ids_ptr, stride_logits, stride_floats, stride_mask, stride_tokens, masked, V,
    num_pieces, num_chunks,
    PIECES: tl.constexpr, CHUNKS: tl.constexpr, SIZE: tl.constexpr, HELD: tl.constexpr, BLOCK_V: tl.constexpr,
    BITS: tl.constexpr, RANDOM: tl.constexpr, WRITE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One row. PIECES, CHUNKS: powers of two with room for the survey's; HELD: chunks that are held in registers."""
    i = tl.program_id(0).to(tl.int64)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.load(rows_ptr + i).to(tl.int64)
    position = tl.load(positions_ptr + i).to(tl.int64)
    piece = tl.arange(0, PIECES)
    is_piece = piece < num_pieces
    survey = survey_ptr + (i * num_pieces + piece) * 4
    tops = tl.load(survey, mask=is_piece, other=float("-inf"))
    broken = tl.sum(tl.load(survey + 2, mask=is_piece, other=0.0), 0)
    top = tl.max(tops, 0)
    places = tl.load(survey + 1, mask=is_piece & (tops == top), other=16777216.0)
    is_finite = (broken == 0) & (top > float("-inf")) & (top < float("inf"))
    token = tl.where(is_finite, tl.min(places, 0), 0.0).to(tl.int32)
    if RANDOM:
        temperature = tl.load(floats_ptr + row * stride_floats)
        if (temperature > 0) & is_finite:
            source = logits_ptr + i * stride_logits
            mask_source = masks_ptr
            if masked:
                mask_source += tl.load(mask_rows_ptr + i).to(tl.int64) * stride_mask
            top_p = tl.load(floats_ptr + row * stride_floats + 1)
            min_p = tl.load(floats_ptr + row * stride_floats + 2)
            k = tl.load(top_k_ptr + row).to(tl.int32)
            has_k = (k > 0) & (k < V)
            scale = 1.4426950408889634 / temperature
            seed = tl.load(seeds_ptr + row).to(tl.uint64, bitcast=True)
            counter = (position + 1).to(tl.uint64, bitcast=True) * 0x9E3779B97F4A7C15
            draw = (_mix(_mix(seed) + counter) >> 40).to(tl.float32) * 5.9604644775390625e-08
            masses = tl.load(survey + 3, mask=is_piece, other=0.0) * tl.exp2((tops - top) * scale)
            total = tl.sum(masses, 0)
            # everything finite stays at first
            low = tl.sum(_ordered(tl.full([1], -3.4028234663852886e38, tl.float32)), 0)
            if min_p > 0:
                bound = top + tl.log2(min_p) / scale
                low = tl.maximum(low, tl.sum(_ordered(tl.zeros([1], tl.float32) + bound), 0))
            # what is walked through by blocks of BLOCK_V in the end, and the mass in front of it
            first, end = 0, 0
            before = total * 0.0
            target = draw * total
            if has_k | (top_p < 1) | (min_p > 0):
                ceiling = tl.sum(_ordered(tl.zeros([1], tl.float32) + top), 0)
                chunks = survey_ptr + tl.num_programs(0).to(tl.int64) * num_pieces * 4
                chunk = tl.arange(0, CHUNKS)
                largest = _ordered(
                    tl.load(chunks + i * num_chunks + chunk, mask=chunk < num_chunks, other=float("-inf"))
                )
                wanted = tl.where(has_k & (k < HELD), k, HELD)
                # as many chunks as tokens are wanted hold them all; chunks with equal maxima may be too many
                held = _reached_by(largest, low, ceiling, wanted, BITS)
                too_many = tl.sum(tl.where(largest >= held, 1, 0), 0) > HELD
                held = tl.where(too_many, held + (1 << BITS), held)
                are_all = held <= low
                least = tl.maximum(low, held)
                is_held = largest >= least
                num_held = tl.sum(is_held.to(tl.int32), 0)
                line = held_ptr + i * HELD
                tl.store(line + tl.cumsum(is_held.to(tl.int32), 0) - 1, chunk, mask=is_held)
                tl.debug_barrier()
                slot = tl.arange(0, HELD * SIZE)
                numbers = tl.load(line + slot // SIZE, mask=slot // SIZE < num_held, other=0)
                place = numbers * SIZE + slot % SIZE
                x = _load(source, mask_source, place, (slot // SIZE < num_held) & (place < V), masked)
                ordered = _ordered(x)
                mass = tl.where(ordered >= least, tl.exp2((x - top) * scale), 0.0)
                have = tl.sum(mass, 0)
                count = tl.sum(tl.where(ordered >= least, 1, 0), 0)
                enough = are_all | (has_k & (count >= k))
                enough = enough | ((not has_k) & (min_p <= 0) & (have >= top_p * total))
                if enough:
                    if has_k:
                        least = tl.maximum(least, _reached_by(ordered, least, ceiling, k, BITS))
                    if top_p < 1:
                        mass = tl.where(ordered >= least, mass, 0.0)
                        kept = tl.where(has_k | are_all, tl.sum(mass, 0), total)
                        least = tl.maximum(least, _holding(ordered, mass, least, ceiling, kept * top_p, BITS))
                    mass = tl.where(ordered >= least, mass, 0.0)
                    target = draw * tl.sum(mass, 0)
                    passed = (tl.cumsum(mass, 0) > target) & (mass > 0)
                    found = tl.min(tl.where(passed, place, 2147483647), 0)
                    # rounding may leave the target unpassed: then the last one that stays
                    token = tl.where(found < 2147483647, found, tl.max(tl.where(mass > 0, place, -1), 0))
                else:
                    # with min-p the chunks that are held say nothing of top-p, nor does the mass of all
                    all_count = has_k | (min_p <= 0)
                    high = tl.where(all_count, held, ceiling + (1 << BITS))
                    known = tl.where(has_k | (min_p > 0), 0.0, total)
                    tokens_wanted = tl.where(has_k, k, 0)
                    low = _whole_row_bound(
                        source,
                        mask_source,
                        masked,
                        low,
                        high,
                        top,
                        scale,
                        tokens_wanted,
                        top_p,
                        known,
                        V,
                        BLOCK_V,
                        BITS,
                    )
                    every = tl.arange(0, BLOCK_V)
                    kept_mass = tl.zeros([BLOCK_V], tl.float32)
                    for begin in tl.range(0, V, BLOCK_V):
                        y = _load(source, mask_source, begin + every, begin + every < V, masked)
                        kept_mass += tl.where(_ordered(y) >= low, tl.exp2((y - top) * scale), 0.0)
                    target = draw * tl.sum(kept_mass, 0)
                    end = V
            else:
                # only the piece in which the draw falls
                ahead = tl.cumsum(masses, 0)
                chosen = tl.min(tl.where(ahead > target, piece, PIECES), 0)
                chosen = tl.where(chosen < PIECES, chosen, tl.max(tl.where(masses > 0, piece, 0), 0))
                before = tl.sum(tl.where(piece < chosen, masses, 0.0), 0)
                first = chosen * BLOCK_V
                end = first + 1
            # walk the blocks until the target is passed; rounding may leave it unpassed: then the last one that stays
            chosen_token = token * 0 - 1
            last = token
            n = tl.arange(0, BLOCK_V)
            block = first
            while (block < end) & (chosen_token < 0):
                x = _load(source, mask_source, block + n, block + n < V, masked)
                p = tl.where(_ordered(x) >= low, tl.exp2((x - top) * scale), 0.0)
                here = tl.sum(p, 0)
                last = tl.where(here > 0, tl.max(tl.where(p > 0, block + n, -1), 0), last)
                if before + here > target:
                    passed = (before + tl.cumsum(p, 0) > target) & (p > 0)
                    found = tl.min(tl.where(passed, block + n, 2147483647), 0)
                    chosen_token = tl.where(found < 2147483647, found, last)
                before += here
                block += BLOCK_V
            if end > first:
                token = tl.where(chosen_token >= 0, chosen_token, last)
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
    bits_free = {torch.bfloat16: 16, torch.float16: 13, torch.float32: 0}[logits.dtype]
    pdl = has_pdl(logits)
    piece = min(PIECE, max(CHUNK, next_power_of_2(vocab)))
    num_pieces, chunks = cdiv(vocab, piece), piece // CHUNK
    num_chunks = num_pieces * chunks
    held = min(MOST_CHUNKS, next_power_of_2(num_chunks))
    survey = torch.empty(count * num_pieces * (4 + chunks), dtype=torch.float32, device=logits.device)
    kept = torch.empty(count * held, dtype=torch.int32, device=logits.device)
    mask_rows, bits = masks if masks is not None else (rows, kept)
    stride_mask = 0 if masks is None else bits.stride(0)
    launch(
        _survey_kernel, (count, num_pieces),
        logits, rows, floats, mask_rows, bits, survey, logits.stride(0), floats.stride(0), stride_mask,
        int(masks is not None), vocab, CHUNKS=chunks, SIZE=CHUNK, RANDOM=is_random, PDL=pdl,
        **options(pdl, num_warps=WARPS if logits.is_cuda else 1),
    )  # fmt: skip
    launch(
        _choose_kernel, (count,),
        logits, rows, floats, top_k, seeds, positions, mask_rows, bits, survey, kept, out, finite,
        out if token_ids is None else token_ids,
        logits.stride(0), floats.stride(0), stride_mask, 0 if token_ids is None else token_ids.stride(0),
        int(masks is not None), vocab, num_pieces, num_chunks,
        PIECES=next_power_of_2(num_pieces), CHUNKS=next_power_of_2(num_chunks), SIZE=CHUNK, HELD=held, BLOCK_V=piece,
        BITS=bits_free, RANDOM=is_random, WRITE=token_ids is not None, PDL=pdl,
        **options(pdl, num_warps=(CHOOSE_WARPS if is_random else 1) if logits.is_cuda else 1),
    )  # fmt: skip
    return out, finite.bool()
