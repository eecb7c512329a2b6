"""Token ids -> rows of a table."""

from __future__ import annotations

import numpy as np
import torch

from core.kernels.cpu.jit import Kernel, float32s, int64s, numbers, part


def _embedding(at, share, shares):  # type: ignore[no-untyped-def]
    ids_at, table_at, y_at, tokens, vocab_size, size = numbers(at, 6)
    ids, table, y = int64s(ids_at, (tokens,)), float32s(table_at, (vocab_size, size)), float32s(y_at, (tokens, size))
    for token in part(tokens, share, shares):
        row = ids[token]
        # an id that is none gives NaN, by which the sampler ends its request
        known = row >= 0 and row < vocab_size
        for i in range(size):
            y[token, i] = table[row, i] if known else np.float32(np.nan)


_kernel = Kernel(_embedding, "6q")


def embedding(ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """int64 [tokens], float32 [vocab_size, size] -> [tokens, size]"""
    if ids.dtype is not torch.int64 or ids.dim() != 1 or not table.is_contiguous():
        return table.index_select(0, ids)
    ids = ids.contiguous()
    tokens, (vocab_size, size) = ids.shape[0], table.shape
    y = torch.empty((tokens, size))
    _kernel(tokens * size, ids.data_ptr(), table.data_ptr(), y.data_ptr(), tokens, vocab_size, size)
    return y
