"""Linear layers of few tokens. One row is bound by reading the weight, which lies as it was loaded; up to MAX_ROWS the tiles of
four outputs and three rows keep every vector register busy, and the library is not better before that.

Measured (2 cores, AMD, float32, the matrices of a 125 M Llama, GB/s for 1 row, GFLOP/s for 64): numba 28 and 122, oneDNN's
packed weights 23 and 128, torch's linear 15 and 99. One row, output by output instead of four at a time: 1.6 times as fast for
the matrices of a 5 M Llama (256 inputs, one thread), 1.1 for those of 125 M.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from core.kernels.cpu.jit import Kernel, float32s, inlined, numbers, part
from core.kernels.references import silu_and_mul_reference

MAX_ROWS = 160
"""Measured up to 64 rows; torch's linear reaches the same 120 to 140 GFLOP/s between 128 and 256."""
TILE = 32
"""Outputs that a thread computes at a time."""


@inlined
def _four_by_three(x, w, n0, n1, n2, n3, m0, m1, m2):  # type: ignore[no-untyped-def]
    a0 = a1 = a2 = b0 = b1 = b2 = c0 = c1 = c2 = d0 = d1 = d2 = np.float32(0)
    for k in range(x.shape[1]):
        x0, x1, x2 = x[m0, k], x[m1, k], x[m2, k]
        wa, wb, wc, wd = w[n0, k], w[n1, k], w[n2, k], w[n3, k]
        a0 += wa * x0
        a1 += wa * x1
        a2 += wa * x2
        b0 += wb * x0
        b1 += wb * x1
        b2 += wb * x2
        c0 += wc * x0
        c1 += wc * x1
        c2 += wc * x2
        d0 += wd * x0
        d1 += wd * x1
        d2 += wd * x2
    return (a0, b0, c0, d0), (a1, b1, c1, d1), (a2, b2, c2, d2)


@inlined
def _four_by_one(x, w, n0, n1, n2, n3, m):  # type: ignore[no-untyped-def]
    a = b = c = d = np.float32(0)
    for k in range(x.shape[1]):
        v = x[m, k]
        a += w[n0, k] * v
        b += w[n1, k] * v
        c += w[n2, k] * v
        d += w[n3, k] * v
    return a, b, c, d


@inlined
def _one_by_one(x, w, n):  # type: ignore[no-untyped-def]
    total = np.float32(0)
    for k in range(x.shape[1]):
        total += w[n, k] * x[0, k]
    return total


@inlined
def _put(y, bias, m, n0, n1, n2, n3, sums):  # type: ignore[no-untyped-def]
    if bias.size > 0:
        y[m, n0], y[m, n1] = sums[0] + bias[n0], sums[1] + bias[n1]
        y[m, n2], y[m, n3] = sums[2] + bias[n2], sums[3] + bias[n3]
    else:
        y[m, n0], y[m, n1], y[m, n2], y[m, n3] = sums


def _linear(at, share, shares):  # type: ignore[no-untyped-def]
    x_at, w_at, bias_at, y_at, rows, outputs, inputs, biases = numbers(at, 8)
    x, w = float32s(x_at, (rows, inputs)), float32s(w_at, (outputs, inputs))
    y, bias = float32s(y_at, (rows, outputs)), float32s(bias_at, (biases,))
    if rows == 1:
        # nothing is used twice: the weight is read as it lies, which is what processors fetch ahead of
        for n in part(outputs, share, shares):
            y[0, n] = _one_by_one(x, w, n) + bias[n] if biases > 0 else _one_by_one(x, w, n)
        return
    for tile in part((outputs + TILE - 1) // TILE, share, shares):
        last = min(outputs, tile * TILE + TILE) - 1
        for n0 in range(tile * TILE, last + 1, 4):
            # what is behind the last output is the last output again
            n1, n2, n3 = min(n0 + 1, last), min(n0 + 2, last), min(n0 + 3, last)
            m = 0
            while m + 1 < rows:
                m2 = min(m + 2, rows - 1)
                s0, s1, s2 = _four_by_three(x, w, n0, n1, n2, n3, m, m + 1, m2)
                _put(y, bias, m, n0, n1, n2, n3, s0)
                _put(y, bias, m + 1, n0, n1, n2, n3, s1)
                _put(y, bias, m2, n0, n1, n2, n3, s2)
                m += 3
            if m < rows:
                _put(y, bias, m, n0, n1, n2, n3, _four_by_one(x, w, n0, n1, n2, n3, m))


@inlined
def _silu(gate):  # type: ignore[no-untyped-def]
    return gate / (np.float32(1) + np.exp(-gate))


@inlined
def _put_silu(y, m, n0, n1, sums):  # type: ignore[no-untyped-def]
    y[m, n0], y[m, n1] = _silu(sums[0]) * sums[2], _silu(sums[1]) * sums[3]


def _linear_silu_and_mul(at, share, shares):  # type: ignore[no-untyped-def]
    """outputs: of the product; the weight has twice as many, gate then up."""
    x_at, w_at, y_at, rows, outputs, inputs = numbers(at, 6)
    x, w, y = float32s(x_at, (rows, inputs)), float32s(w_at, (2 * outputs, inputs)), float32s(y_at, (rows, outputs))
    if rows == 1:
        for n in part(outputs, share, shares):
            y[0, n] = _silu(_one_by_one(x, w, n)) * _one_by_one(x, w, n + outputs)
        return
    for tile in part((outputs + TILE - 1) // TILE, share, shares):
        last = min(outputs, tile * TILE + TILE) - 1
        for n0 in range(tile * TILE, last + 1, 2):
            n1 = min(n0 + 1, last)
            u0, u1 = n0 + outputs, n1 + outputs
            m = 0
            while m + 1 < rows:
                m2 = min(m + 2, rows - 1)
                s0, s1, s2 = _four_by_three(x, w, n0, n1, u0, u1, m, m + 1, m2)
                _put_silu(y, m, n0, n1, s0)
                _put_silu(y, m + 1, n0, n1, s1)
                _put_silu(y, m2, n0, n1, s2)
                m += 3
            if m < rows:
                _put_silu(y, m, n0, n1, _four_by_one(x, w, n0, n1, u0, u1, m))


_linear_kernel = Kernel(_linear, "8q")
_silu_kernel = Kernel(_linear_silu_and_mul, "6q")


def takes(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Few rows, and a weight as checkpoints have it? The kernels see addresses alone: all else is for torch, its errors too."""
    return (
        weight.dtype is torch.float32
        and weight.is_contiguous()
        and x.shape[-1] == weight.shape[1]
        and x.numel() <= MAX_ROWS * weight.shape[1]
    )


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """[..., in] x [out, in] -> [..., out]"""
    if not takes(x, weight):
        return functional.linear(x, weight, bias)
    x = x.contiguous()
    outputs, inputs = weight.shape
    rows = x.numel() // inputs
    y = torch.empty((*x.shape[:-1], outputs))
    bias_at, biases = (0, 0) if bias is None else (bias.data_ptr(), outputs)
    _linear_kernel(
        rows * outputs * inputs,
        x.data_ptr(), weight.data_ptr(), bias_at, y.data_ptr(), rows, outputs, inputs, biases,
    )  # fmt: skip
    return y


def linear_silu_and_mul(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """[..., in] x [2 out, in] (gate, then up) -> [..., out]"""
    if not takes(x, weight):
        return silu_and_mul_reference(functional.linear(x, weight))
    x = x.contiguous()
    outputs, inputs = weight.shape[0] // 2, weight.shape[1]
    rows = x.numel() // inputs
    y = torch.empty((*x.shape[:-1], outputs))
    _silu_kernel(2 * rows * outputs * inputs, x.data_ptr(), weight.data_ptr(), y.data_ptr(), rows, outputs, inputs)
    return y
