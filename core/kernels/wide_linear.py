"""y = x W^T (+ bias) for up to 256 rows of x, with the weights read once; optionally SiLU(gate) * up of W's two halves.

Weights and activations come by tensor descriptors (TMA), so it needs Hopper. W is the left operand of the matrix
instruction if `swap`: then a tile may hold as few as 64 outputs and all rows of x. With programmatic dependent launch
the first weights are brought to the L2 cache while the kernel before still runs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.tools.tensor_descriptor import TensorDescriptor

from core.kernels.launch import cdiv, launch
from core.kernels.linear_configs import WideConfig
from core.kernels.skinny_linear import prefetch, skinny_linear_reference
from core.kernels.workspace import workspace

__all__ = ["skinny_linear_reference", "wide_linear"]


@triton.jit(do_not_specialize=["M", "num_splits"])
def _wide_kernel(
    x_desc, w_desc, w_ptr, bias_ptr, y_ptr, part_ptr, count_ptr, M, N, K, split_inputs, num_splits, num_tiles,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, STAGES: tl.constexpr, SWAP: tl.constexpr,
    SPLIT: tl.constexpr, SILU: tl.constexpr, BIAS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: OUTPUTS outputs of ROWS rows, over its share of the inputs. Tiles of one W run side by side."""
    pid_m, pid_n, pid_k = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if PDL:
        gdc_launch_dependents()
    m = pid_m * ROWS + tl.arange(0, ROWS)
    n = pid_n * OUTPUTS + tl.arange(0, OUTPUTS)
    first = pid_k * split_inputs
    if PDL:
        w_row = w_ptr + n[:, None].to(tl.int64) * K + first
        line = tl.arange(0, INPUTS // 64) * 64  # 128 bytes of two-byte numbers
        if pid_m == 0:
            for stage in tl.static_range(STAGES):
                if stage * INPUTS < split_inputs:
                    prefetch(w_row + stage * INPUTS + line[None, :])
                    if SILU:
                        prefetch(w_row + tl.cast(N, tl.int64) * K + stage * INPUTS + line[None, :])
        gdc_wait()
    if SWAP:
        acc = tl.zeros([OUTPUTS, ROWS], tl.float32)
        up_acc = tl.zeros([OUTPUTS, ROWS], tl.float32)
    else:
        acc = tl.zeros([ROWS, OUTPUTS], tl.float32)
        up_acc = tl.zeros([ROWS, OUTPUTS], tl.float32)
    for at in tl.range(first, first + split_inputs, INPUTS, num_stages=STAGES):
        x = x_desc.load([pid_m * ROWS, at])
        w = w_desc.load([pid_n * OUTPUTS, at])
        if SWAP:
            acc = tl.dot(w, tl.trans(x), acc)
        else:
            acc = tl.dot(x, tl.trans(w), acc)
        if SILU:
            u = w_desc.load([N + pid_n * OUTPUTS, at])
            if SWAP:
                up_acc = tl.dot(u, tl.trans(x), up_acc)
            else:
                up_acc = tl.dot(x, tl.trans(u), up_acc)
    if SILU:
        acc = acc / (1 + tl.exp(-acc)) * up_acc
    if SWAP:
        offsets = m[None, :].to(tl.int64) * N + n[:, None]
        inside = (m[None, :] < M) & (n[:, None] < N)
        bias_at = bias_ptr + n[:, None]
    else:
        offsets = m[:, None].to(tl.int64) * N + n[None, :]
        inside = (m[:, None] < M) & (n[None, :] < N)
        bias_at = bias_ptr + n[None, :]
    if SPLIT:
        tl.store(part_ptr + pid_k * M.to(tl.int64) * N + offsets, acc, mask=inside)
        tl.debug_barrier()
        counter = count_ptr + pid_n * num_tiles + pid_m
        if tl.atomic_add(counter, 1, sem="acq_rel") == num_splits - 1:
            acc = tl.zeros_like(acc)
            for i in range(num_splits):
                part = part_ptr + i * M.to(tl.int64) * N + offsets
                acc += tl.load(part, mask=inside, other=0.0, cache_modifier=".cg")
            tl.store(counter, 0)  # ready for the next launch
            if BIAS:
                acc += tl.load(bias_at).to(tl.float32)
            tl.store(y_ptr + offsets, acc.to(y_ptr.dtype.element_ty), mask=inside)
    else:
        if BIAS:
            acc += tl.load(bias_at).to(tl.float32)
        tl.store(y_ptr + offsets, acc.to(y_ptr.dtype.element_ty), mask=inside)


def wide_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    silu: bool = False,
    *,
    config: WideConfig,
) -> torch.Tensor:
    """x: [..., in], a few rows; weight: [out, in], or [2 * out, in] (gate, then up) with silu -> [..., out]"""
    inputs = weight.shape[1]
    outputs = weight.shape[0] // 2 if silu else weight.shape[0]
    rows = x.numel() // inputs
    if inputs % (config.inputs * config.splits) or outputs % config.outputs:
        raise ValueError(f"{config} does not divide {outputs} outputs of {inputs} inputs")
    if silu and (bias is not None or config.splits > 1):
        raise ValueError("no kernel adds a bias or splits before SiLU")
    flat = x.reshape(rows, inputs).contiguous()
    y = torch.empty(*x.shape[:-1], outputs, dtype=x.dtype, device=x.device)
    tiles = cdiv(rows, config.rows)
    part, count = y, y
    if config.splits > 1:
        part, count = workspace(x.device, config.splits * rows * outputs, outputs // config.outputs * tiles)
    x_desc = TensorDescriptor(flat, [rows, inputs], [inputs, 1], [config.rows, config.inputs])
    w_desc = TensorDescriptor(weight, list(weight.shape), [inputs, 1], [config.outputs, config.inputs])
    launch(
        _wide_kernel, (tiles, outputs // config.outputs, config.splits),
        x_desc, w_desc, weight, weight if bias is None else bias, y, part, count, rows, outputs, inputs,
        inputs // config.splits, config.splits, tiles, ROWS=config.rows, OUTPUTS=config.outputs, INPUTS=config.inputs,
        STAGES=config.stages, SWAP=config.swap, SPLIT=config.splits > 1, SILU=silu, BIAS=bias is not None, PDL=True,
        num_warps=config.warps, launch_pdl=True,
    )  # fmt: skip
    return y
