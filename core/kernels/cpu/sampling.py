"""The token with the highest logit of each row, written into the row's place: a dozen small operations in one call."""

from __future__ import annotations

import numpy as np
import torch

from core.kernels.cpu.jit import Kernel, float32s, inlined, int32s, numbers, part

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
