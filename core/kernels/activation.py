"""SiLU(gate) * up of a fused gate_up projection. Source: arXiv:2002.05202."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from core.kernels.launch import cdiv, has_pdl, launch, options
from core.kernels.references import silu_and_mul_reference

__all__ = ["silu_and_mul", "silu_and_mul_reference"]

BLOCK = 1024
WARPS = 4


@triton.jit
def _silu_and_mul_kernel(x_ptr, y_ptr, stride_x, D, BLOCK_D: tl.constexpr, PDL: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    # [BLOCK_D]
    i = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = i < D
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    gate = tl.load(x_ptr + row * stride_x + i, mask=inside, other=0.0)
    up = tl.load(x_ptr + row * stride_x + D + i, mask=inside, other=0.0)
    wide = gate.to(tl.float32)
    # rounded between the two, as the reference rounds
    act = (wide / (1 + tl.exp(-wide))).to(gate.dtype)
    tl.store(y_ptr + row * D + i, (act.to(tl.float32) * up.to(tl.float32)).to(gate.dtype), mask=inside)


def silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    """x: [..., 2 * size], gate then up, the last dimension contiguous -> [..., size]"""
    if x.shape[-1] % 2:
        raise ValueError(f"gate and up must be of one size; the last dimension is {x.shape[-1]}")
    size = x.shape[-1] // 2
    y = torch.empty(*x.shape[:-1], size, dtype=x.dtype, device=x.device)
    rows = y.numel() // size
    if rows == 0:
        return y
    flat = x if x.dim() == 2 else x.reshape(rows, 2 * size)
    if flat.stride(1) != 1:
        flat = flat.contiguous()
    pdl = has_pdl(x)
    launch(
        _silu_and_mul_kernel,
        (rows, cdiv(size, BLOCK)),
        flat,
        y,
        flat.stride(0),
        size,
        BLOCK_D=BLOCK,
        PDL=pdl,
        **options(pdl, num_warps=WARPS),
    )
    return y
