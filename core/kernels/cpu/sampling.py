"""Logits -> tokens, written into their rows' places: dozens of small operations in one call.

`greedy` takes the highest logit of each row. `sample` does the rest of what core/kernels/sampling.py does on a GPU: bitmask,
temperature, min-p, top-k, top-p and the draw; the specification is core/sampling/sampler.py.
"""

from __future__ import annotations

import numpy as np
import torch

from core.kernels.cpu.jit import Kernel, exp, float32s, inlined, int32s, int64s, numbers, part

BLOCK = 64
"""Logits that are compared at a time, by vectors; where one is higher than all before, they are looked at one by one."""


@inlined
def _highest(logits):  # type: ignore[no-untyped-def]
    """-> the first place of the highest logit, and whether that is a finite number (never if any is NaN)."""
    size = logits.shape[0]
    highest, at, broken = np.float32(-np.inf), 0, 0
    for begin in range(0, size, BLOCK):
        end = min(begin + BLOCK, size)
        higher = 0
        for j in range(begin, end):
            higher += logits[j] > highest
            broken += logits[j] != logits[j]
        if higher:
            for j in range(begin, end):
                if logits[j] > highest:
                    highest, at = logits[j], j
    return at, not broken and np.isfinite(highest)


def _greedy(at, share, shares):  # type: ignore[no-untyped-def]
    logits_at, rows_at, places_at, token_ids_at, found_at, count, most, vocab_size, width, num_rows, later = numbers(
        at, 11
    )
    logits, found = float32s(logits_at, (count, vocab_size)), int32s(found_at, (2, most))
    rows, places = int32s(rows_at, (count,)), int32s(places_at, (count,))
    token_ids = int32s(token_ids_at, (num_rows, width))
    for i in part(count, share, shares):
        token, finite = _highest(logits[i])
        token_ids[rows[i], places[i] + later] = token
        found[0, i], found[1, i] = token, finite


_kernel = Kernel(_greedy, "11q")


def greedy(
    logits: torch.Tensor,
    rows: torch.Tensor,
    places: torch.Tensor,
    token_ids: torch.Tensor,
    found: torch.Tensor,
    later: int = 0,
) -> None:
    """Write the token with the highest logit, of equals the first, into token_ids[row, place + later].

    logits: float32 [n, vocab]; rows, places: int32 [n or more]; token_ids: int32 [num_rows, width]; found: int32
    [2, n or more], contiguous like all: the tokens, and 1 where the highest logit is a finite number, else 0.
    """
    logits = logits.contiguous()
    count, vocab_size = logits.shape
    num_rows, width = token_ids.shape
    _kernel(
        logits.numel() if count > 1 else 0,
        logits.data_ptr(), rows.data_ptr(), places.data_ptr(), token_ids.data_ptr(), found.data_ptr(),
        count, found.shape[1], vocab_size, width, num_rows, later,
    )  # fmt: skip


GAMMA, MIX_1, MIX_2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
ONE_BITS = 0x3F800000
"""Of 1.0, the weight of the likeliest token."""


@inlined
def _mix(v):  # type: ignore[no-untyped-def]
    """splitmix64's finalizer, as in core/sampling/random.py"""
    v = (v ^ (v >> np.uint64(30))) * MIX_1
    v = (v ^ (v >> np.uint64(27))) * MIX_2
    return v ^ (v >> np.uint64(31))


@inlined
def _uniform(seed, place):  # type: ignore[no-untyped-def]
    """float64 in [0, 1)"""
    mixed = _mix(_mix(np.uint64(seed)) + np.uint64(place + 1) * GAMMA)
    return np.float64(mixed >> np.uint64(11)) * 2.0**-53


@inlined
def _forbid(logits, bits):  # type: ignore[no-untyped-def]
    """-inf where the bitmask has no bit"""
    whole = logits.shape[0] // 32
    for word in range(whole):
        allowed = bits[word]
        if allowed != -1:
            # 32 at any rate, and none skipped: that many vectors can do
            for j in range(32):
                x = logits[32 * word + j]
                logits[32 * word + j] = x if allowed & (np.int32(1) << np.int32(j)) else np.float32(-np.inf)
    for j in range(32 * whole, logits.shape[0]):
        if not (bits[whole] >> (j - 32 * whole)) & 1:
            logits[j] = -np.inf


@inlined
def _drop_below(weights, bits, least):  # type: ignore[no-untyped-def]
    """bits: of the weights, which order as the numbers do"""
    for j in range(weights.shape[0]):
        weights[j] = weights[j] if bits[j] >= least else np.float32(0)


@inlined
def _top_k(weights, bits, k):  # type: ignore[no-untyped-def]
    """Bits of the k-th largest weight."""
    low, high = np.int32(0), np.int32(ONE_BITS + 1)
    for _ in range(31):
        middle = np.int32(low + (high - low) // 2)
        there = 0
        for j in range(weights.shape[0]):
            there += bits[j] >= middle
        if there >= k:
            low = middle
        else:
            high = middle
    return low


@inlined
def _top_p(weights, bits, top_p):  # type: ignore[no-untyped-def]
    """Bits of the largest bound above which lie top_p of all weights' sum."""
    total = 0.0
    for j in range(weights.shape[0]):
        total += weights[j]
    wanted = total * top_p
    low, high = np.int32(0), np.int32(ONE_BITS + 1)
    for _ in range(31):
        middle = np.int32(low + (high - low) // 2)
        mass = 0.0
        for j in range(weights.shape[0]):
            mass += float(weights[j]) if bits[j] >= middle else 0.0
        if mass >= wanted:
            low = middle
        else:
            high = middle
    return low


@inlined
def _draw(weights, number):  # type: ignore[no-untyped-def]
    """The first place up to which the weights' sum passes `number` of it all."""
    size = weights.shape[0]
    total = 0.0
    for begin in range(0, size, BLOCK):
        here = 0.0
        for j in range(begin, min(begin + BLOCK, size)):
            here += weights[j]
        total += here
    target = number * total
    before, last = 0.0, 0
    for begin in range(0, size, BLOCK):
        end = min(begin + BLOCK, size)
        here = 0.0
        for j in range(begin, end):
            here += weights[j]
        if before + here > target:
            passed = before
            for j in range(begin, end):
                passed += weights[j]
                if weights[j] > 0:
                    last = j
                    if passed > target:
                        return j
        before += here
    # rounding left it unpassed: the last token that has a weight
    for j in range(last, size):
        if weights[j] > 0:
            last = j
    return last


def _sample(at, share, shares):  # type: ignore[no-untyped-def]
    (
        logits_at, rows_at, places_at, token_ids_at, found_at, floats_at, top_k_at, seeds_at, lines_at, bits_at,
        count, most, vocab_size, width, num_rows, columns, words, num_lines,
    ) = numbers(at, 18)  # fmt: skip
    logits, logit_bits = float32s(logits_at, (count, vocab_size)), int32s(logits_at, (count, vocab_size))
    found, floats = int32s(found_at, (2, most)), float32s(floats_at, (num_rows, columns))
    rows, places, lines = int32s(rows_at, (count,)), int32s(places_at, (count,)), int32s(lines_at, (count,))
    token_ids, bits = int32s(token_ids_at, (num_rows, width)), int32s(bits_at, (num_lines, words))
    top_ks, seeds = int64s(top_k_at, (num_rows,)), int64s(seeds_at, (num_rows,))
    for i in part(count, share, shares):
        row, weights = rows[i], logits[i]
        token, finite = _highest(weights)
        if finite and num_lines > 0 and lines[i] >= 0:
            _forbid(weights, bits[lines[i]])
            token, _ = _highest(weights)
        temperature, top_p, min_p = floats[row, 0], floats[row, 1], floats[row, 2]
        if finite and temperature > 0:
            top, scale = weights[token], np.float32(1) / temperature
            for j in range(vocab_size):
                # of the highest itself no product is taken: the scale may be infinite
                below = weights[j] - top
                weight = exp(below * scale) if below < 0 else np.float32(1)
                weights[j] = weight if below > np.float32(-np.inf) else np.float32(0)
            if min_p > 0:
                for j in range(vocab_size):
                    weights[j] = weights[j] if weights[j] >= min_p else np.float32(0)
            if 0 < top_ks[row] < vocab_size:
                _drop_below(weights, logit_bits[i], _top_k(weights, logit_bits[i], top_ks[row]))
            if top_p < 1:
                _drop_below(weights, logit_bits[i], _top_p(weights, logit_bits[i], top_p))
            token = _draw(weights, _uniform(seeds[row], places[i]))
        token_ids[row, places[i]] = token
        found[0, i], found[1, i] = token, finite


_sample_kernel = Kernel(_sample, "18q")
SAMPLE_WORK = 16
"""Operations a logit, about: the exponential is most of it."""


def sample(
    logits: torch.Tensor,
    rows: torch.Tensor,
    places: torch.Tensor,
    token_ids: torch.Tensor,
    found: torch.Tensor,
    floats: torch.Tensor,
    top_k: torch.Tensor,
    seeds: torch.Tensor,
    masks: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> None:
    """Choose a token a row and write it into token_ids[row, place]; the logits are written over.

    logits: float32 [n, vocab]; rows, places: int32 [n]; token_ids: int32 [num_rows, width]; found: int32 [2, n] as in
    `greedy`; floats: float32 [num_rows, 3 or more], temperature (0: the highest logit), top_p, min_p; top_k, seeds: int64
    [num_rows]; masks: (int32 [n], the line of the bits or -1; int32 [lines, words]). All contiguous.
    """
    count, vocab_size = logits.shape
    num_rows, width = token_ids.shape
    lines_at, bits_at, num_lines, words = 0, 0, 0, 0
    if masks is not None:
        lines_at, bits_at, (num_lines, words) = masks[0].data_ptr(), masks[1].data_ptr(), masks[1].shape
    _sample_kernel(
        SAMPLE_WORK * logits.numel() if count > 1 else 0,
        logits.data_ptr(), rows.data_ptr(), places.data_ptr(), token_ids.data_ptr(), found.data_ptr(),
        floats.data_ptr(), top_k.data_ptr(), seeds.data_ptr(), lines_at, bits_at,
        count, found.shape[1], vocab_size, width, num_rows, floats.shape[1], words, num_lines,
    )  # fmt: skip
