"""RMS norm, alone and with the residual addition in front of it. Source: arXiv:1910.07467."""

from __future__ import annotations

import numpy as np
import torch

from core.kernels.cpu.jit import Kernel, float32s, numbers, part, real
from core.kernels.references import add_rms_norm_reference, rms_norm_reference


def _rms_norm(at, share, shares):  # type: ignore[no-untyped-def]
    """adds: x is added to the residual first, in place."""
    x_at, residual_at, weight_at, y_at, rows, size, eps, adds = numbers(at, 8)
    x, weight, y = float32s(x_at, (rows, size)), float32s(weight_at, (size,)), float32s(y_at, (rows, size))
    total = float32s(residual_at, (rows, size)) if adds else x
    for row in part(rows, share, shares):
        squares = np.float32(0)
        if adds:
            for i in range(size):
                value = x[row, i] + total[row, i]
                total[row, i] = value
                squares += value * value
        else:
            for i in range(size):
                squares += x[row, i] * x[row, i]
        factor = np.float32(1) / np.sqrt(squares / np.float32(size) + np.float32(real(eps)))
        for i in range(size):
            y[row, i] = total[row, i] * factor * weight[i]


_kernel = Kernel(_rms_norm, "6qdq")


def _fits(residual: torch.Tensor, x: torch.Tensor) -> bool:
    return residual.dtype is torch.float32 and residual.is_contiguous() and residual.shape == x.shape


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """[..., size] -> the same"""
    size = weight.shape[0]
    if x.shape[-1] != size or weight.dtype is not torch.float32:
        return rms_norm_reference(x, weight, eps)
    x = x.contiguous()
    y, count = torch.empty_like(x), x.numel()
    _kernel(count, x.data_ptr(), 0, weight.data_ptr(), y.data_ptr(), count // size, size, eps, False)
    return y


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(norm(x + residual), x + residual); the sum is written over `residual`."""
    size = weight.shape[0]
    if x.shape[-1] != size or weight.dtype is not torch.float32 or not _fits(residual, x):
        return add_rms_norm_reference(x, residual, weight, eps)
    x = x.contiguous()
    y, count = torch.empty_like(x), x.numel()
    residual_at = residual.data_ptr()
    _kernel(count, x.data_ptr(), residual_at, weight.data_ptr(), y.data_ptr(), count // size, size, eps, True)
    return y, residual
