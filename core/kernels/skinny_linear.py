"""y = x W^T (+ bias) for 1 to 32 rows of x, bound by reading W once; optionally SiLU(gate) * up of the two halves of W.

One row: a GEMV by sums, the weights straight to registers. 2 to 32 rows: tl.dot with the rows padded to 16 or 32. With
programmatic dependent launch the first weights are fetched while the kernel before still runs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch.nn import functional
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from core.kernels.launch import has_pdl, has_tma, launch, options
from core.kernels.linear_configs import MAX_DOT_ROWS, DotConfig, GemvConfig, LinearConfig, choose
from core.kernels.references import silu_and_mul_reference
from core.kernels.workspace import workspace

MAX_FEW_ROWS = 512
"""Steps of more rows are bound by arithmetic, where the library is good."""
LEAST_WEIGHT_BYTES = 1 << 16
"""Below it a launch is all the time there is, and the library's is cheaper."""


@triton.jit
def prefetch(pointers):
    """Bring lines to the L2 cache."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [pointers.to(tl.int64)],
        dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def _gemv_kernel(
    x_ptr, w_ptr, bias_ptr, y_ptr, N,
    K: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, SILU: tl.constexpr, BIAS: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """One row. Weights go to registers one tile ahead; the first tile before the wait."""
    if PDL:
        gdc_launch_dependents()
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    k = tl.arange(0, INPUTS)
    # [OUTPUTS, INPUTS]
    w_at = w_ptr + n[:, None].to(tl.int64) * K + k[None, :]
    up_at = w_at + tl.cast(N, tl.int64) * K
    tile = tl.load(w_at, eviction_policy="evict_first")
    acc = tl.zeros([OUTPUTS, INPUTS], tl.float32)
    if SILU:
        up_tile = tl.load(up_at, eviction_policy="evict_first")
        up_acc = tl.zeros([OUTPUTS, INPUTS], tl.float32)
    if PDL:
        gdc_wait()
    for at in range(INPUTS, K, INPUTS):
        following = tl.load(w_at + at, eviction_policy="evict_first")
        if SILU:
            up_following = tl.load(up_at + at, eviction_policy="evict_first")
        x = tl.load(x_ptr + (at - INPUTS) + k).to(tl.float32)[None, :]
        acc += tile.to(tl.float32) * x
        tile = following
        if SILU:
            up_acc += up_tile.to(tl.float32) * x
            up_tile = up_following
    x = tl.load(x_ptr + (K - INPUTS) + k).to(tl.float32)[None, :]
    acc += tile.to(tl.float32) * x
    out = tl.sum(acc, 1)
    if BIAS:
        out += tl.load(bias_ptr + n).to(tl.float32)
    if SILU:
        up_acc += up_tile.to(tl.float32) * x
        out = out / (1 + tl.exp(-out)) * tl.sum(up_acc, 1)
    tl.store(y_ptr + n, out.to(y_ptr.dtype.element_ty))


@triton.jit(do_not_specialize=["M", "num_splits"])
def _dot_kernel(
    x_ptr, w_ptr, bias_ptr, y_ptr, part_ptr, count_ptr, M, N, K, stride_x, split_inputs, num_splits,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, STAGES: tl.constexpr, SWAP: tl.constexpr,
    SPLIT: tl.constexpr, SILU: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    pid_n, pid_k = tl.program_id(0), tl.program_id(1)
    if PDL:
        gdc_launch_dependents()
    m = tl.arange(0, ROWS)
    n = pid_n * OUTPUTS + tl.arange(0, OUTPUTS)
    k = tl.arange(0, INPUTS)
    # split_inputs is an argument, not K // num_splits: its divisibility by 16 is what lets the loads vectorize
    first = pid_k * split_inputs
    w_row = w_ptr + n[:, None].to(tl.int64) * K + first
    up = tl.cast(N, tl.int64) * K
    if PDL:
        line = tl.arange(0, INPUTS // 64) * 64  # 128 bytes of two-byte numbers
        for stage in tl.static_range(STAGES):
            if stage * INPUTS < split_inputs:
                prefetch(w_row + stage * INPUTS + line[None, :])
                if SILU:
                    prefetch(w_row + up + stage * INPUTS + line[None, :])
        gdc_wait()
    w_at = w_row + k[None, :]
    x_at = x_ptr + m[:, None] * stride_x + first + k[None, :]
    if SWAP:
        acc = tl.zeros([OUTPUTS, ROWS], tl.float32)
        up_acc = tl.zeros([OUTPUTS, ROWS], tl.float32)
    else:
        acc = tl.zeros([ROWS, OUTPUTS], tl.float32)
        up_acc = tl.zeros([ROWS, OUTPUTS], tl.float32)
    for at in tl.range(0, split_inputs, INPUTS, num_stages=STAGES):
        x = tl.load(x_at + at, mask=m[:, None] < M, other=0.0)
        w = tl.load(w_at + at, eviction_policy="evict_first")
        if SWAP:
            acc = tl.dot(w, tl.trans(x), acc, input_precision=PRECISION)
        else:
            acc = tl.dot(x, tl.trans(w), acc, input_precision=PRECISION)
        if SILU:
            u = tl.load(w_at + up + at, eviction_policy="evict_first")
            if SWAP:
                up_acc = tl.dot(u, tl.trans(x), up_acc, input_precision=PRECISION)
            else:
                up_acc = tl.dot(x, tl.trans(u), up_acc, input_precision=PRECISION)
    if SILU:
        acc = acc / (1 + tl.exp(-acc)) * up_acc
    if SWAP:
        offsets = m[None, :] * N + n[:, None]
        inside = m[None, :] < M
        bias_at = bias_ptr + n[:, None]
    else:
        offsets = m[:, None] * N + n[None, :]
        inside = m[:, None] < M
        bias_at = bias_ptr + n[None, :]
    if SPLIT:
        tl.store(part_ptr + pid_k * ROWS * N + offsets, acc, mask=inside)
        tl.debug_barrier()
        if tl.atomic_add(count_ptr + pid_n, 1, sem="acq_rel") == num_splits - 1:
            acc = tl.zeros_like(acc)
            for i in range(num_splits):
                acc += tl.load(part_ptr + i * ROWS * N + offsets, mask=inside, other=0.0, cache_modifier=".cg")
            tl.store(count_ptr + pid_n, 0)  # ready for the next launch
            if BIAS:
                acc += tl.load(bias_at).to(tl.float32)
            tl.store(y_ptr + offsets, acc.to(y_ptr.dtype.element_ty), mask=inside)
    else:
        if BIAS:
            acc += tl.load(bias_at).to(tl.float32)
        tl.store(y_ptr + offsets, acc.to(y_ptr.dtype.element_ty), mask=inside)


def skinny_linear_reference(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, silu: bool = False
) -> torch.Tensor:
    """The specification of skinny_linear."""
    y = functional.linear(x.float(), weight.float(), None if bias is None else bias.float())
    return (silu_and_mul_reference(y) if silu else y).to(x.dtype)


def choose_config(x: torch.Tensor, weight: torch.Tensor, silu: bool = False) -> LinearConfig | None:
    """The kernel and its tiles for these shapes, of all files *_linear.py; None: the library is as fast, or none fits."""
    inputs = weight.shape[1]
    rows = x.numel() // inputs
    outputs = weight.shape[0] // 2 if silu else weight.shape[0]
    if not 1 <= rows <= MAX_FEW_ROWS or not weight.is_contiguous() or x.dtype != weight.dtype or x.element_size() != 2:
        return None
    if weight.nbytes < LEAST_WEIGHT_BYTES:
        return None
    return choose(rows, outputs, inputs, silu, has_tma(x))


def skinny_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    silu: bool = False,
    config: GemvConfig | DotConfig | None = None,
) -> torch.Tensor:
    """x: [..., in], at most 32 rows; weight: [out, in], or [2 * out, in] (gate, then up) with silu -> [..., out]"""
    inputs = weight.shape[1]
    outputs = weight.shape[0] // 2 if silu else weight.shape[0]
    rows = x.numel() // inputs
    if x.shape[-1] != inputs or not 1 <= rows <= MAX_DOT_ROWS:
        raise ValueError(f"x has shape {tuple(x.shape)}; it must have 1 to {MAX_DOT_ROWS} rows of {inputs}")
    if silu and bias is not None:
        raise ValueError("no kernel adds a bias before SiLU")
    flat = x.reshape(rows, inputs)
    if flat.stride(1) != 1:
        flat = flat.contiguous()
    y = torch.empty(*x.shape[:-1], outputs, dtype=x.dtype, device=x.device)
    chosen = config or choose(rows, outputs, inputs, silu, False)
    if not isinstance(chosen, GemvConfig | DotConfig):
        raise ValueError(f"no kernel for {outputs} outputs of {inputs} inputs")
    config = chosen
    pdl = has_pdl(x)
    other = weight if bias is None else bias
    if isinstance(config, GemvConfig):
        launch(
            _gemv_kernel, (outputs // config.outputs,),
            flat, weight, other, y, outputs, K=inputs, OUTPUTS=config.outputs, INPUTS=config.inputs, SILU=silu,
            BIAS=bias is not None, PDL=pdl, **options(pdl, num_warps=config.warps),
        )  # fmt: skip
        return y
    padded = 16 if rows <= 16 else 32
    part, count = y, y
    if config.splits > 1:
        part, count = workspace(x.device, config.splits * padded * outputs, outputs // config.outputs)
    launch(
        _dot_kernel, (outputs // config.outputs, config.splits),
        flat, weight, other, y, part, count, rows, outputs, inputs, flat.stride(0), inputs // config.splits,
        config.splits, ROWS=padded, OUTPUTS=config.outputs, INPUTS=config.inputs, STAGES=config.stages,
        SWAP=config.swap, SPLIT=config.splits > 1, SILU=silu, BIAS=bias is not None,
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32", PDL=pdl,
        **options(pdl, num_warps=config.warps),
    )  # fmt: skip
    return y
