"""The token with the highest logit of each row, written into the row's place: a dozen small operations in one call."""

from __future__ import annotations

import numpy as np
import torch
from numba import prange

from core.kernels.cpu.jit import Kernel, float32s, inlined, int32s, int64s

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


def _greedy(logits_at, rows_at, places_at, token_ids_at, found_at, count, vocab_size, width, num_rows):  # type: ignore[no-untyped-def]
    """found: int32 [2, count], tokens and whether the highest logit is finite."""
    logits, found = float32s(logits_at, (count, vocab_size)), int32s(found_at, (2, count))
    rows, places = int64s(rows_at, (count,)), int64s(places_at, (count,))
    token_ids = int32s(token_ids_at, (num_rows, width))
    for i in prange(count):
        token, finite = _highest(logits[i])
        token_ids[rows[i], places[i]] = token
        found[0, i], found[1, i] = token, finite


_kernel = Kernel(_greedy, *[0] * 9)


def greedy(logits: torch.Tensor, rows: np.ndarray, places: np.ndarray, token_ids: torch.Tensor) -> np.ndarray:
    """-> int32 [2, n]: the tokens, of equals the first, and whether the highest logit is a finite number.

    logits: float32 [n, vocab]; rows, places: int64 [n], where the tokens are written in token_ids, int32 [num_rows, width],
    contiguous.
    """
    logits = logits.contiguous()
    count, vocab_size = logits.shape
    found = np.empty((2, count), np.int32)
    num_rows, width = token_ids.shape
    _kernel(
        logits.numel(),
        logits.data_ptr(), rows.ctypes.data, places.ctypes.data, token_ids.data_ptr(), found.ctypes.data,
        count, vocab_size, width, num_rows,
    )  # fmt: skip
    return found
