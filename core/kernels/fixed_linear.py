"""y = x W^T (+ bias) in which a row of y depends on its row of x alone, bit by bit, however many rows there are.

Sums over the inputs have one order for a weight: whole splits, their number chosen by the weight's shape, added first
to last. With few rows each split is a program of its own and the last to arrive adds them up; with many rows one
program goes through all of them and adds in the same order. Tiles differ only in rows and outputs, which no sum crosses.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from core.kernels.launch import cdiv, has_pdl, launch, options
from core.kernels.references import linear_reference
from core.kernels.workspace import workspace

__all__ = ["fixed_linear", "linear_reference"]

MAX_SPLITS = 8
PROGRAMS = 128
"""As many as a weight's splits and tiles of outputs should make, so that a few rows keep the device busy."""
SMALLEST_OUTPUTS = 64


@dataclass(frozen=True, slots=True)
class FixedConfig:
    """Tile sizes, of one weight's shape."""

    rows: int
    outputs: int
    inputs: int
    stages: int
    warps: int
    parallel: bool
    """A program a split."""


CONFIGS = (
    (16, FixedConfig(16, 64, 128, 4, 4, True)),
    (32, FixedConfig(32, 64, 128, 4, 4, True)),
    (64, FixedConfig(64, 64, 128, 3, 4, True)),
    (128, FixedConfig(128, 64, 64, 4, 4, True)),
    (256, FixedConfig(128, 128, 64, 4, 8, True)),
    (1 << 30, FixedConfig(256, 128, 64, 3, 8, False)),
)
"""By the most rows. The weight is the left operand, so that few rows fit wgmma too."""
SERIAL_SPLITS = FixedConfig(128, 128, 64, 4, 8, False)
"""Many rows of a weight with several splits: two tiles of sums are held at a time."""
WIDE = (
    (64, FixedConfig(16, 64, 32, 2, 4, True)),
    (1 << 30, FixedConfig(64, 64, 32, 2, 4, False)),
)
"""4-byte numbers"""
SMALL = FixedConfig(16, 16, 16, 1, 1, True)
"""In Triton's interpreter: what a test can afford."""


def choose_splits(outputs: int, inputs: int) -> int:
    """By the weight's shape alone: every batch must add in the same order."""
    splits = 1
    while splits < MAX_SPLITS and outputs // SMALLEST_OUTPUTS * splits < PROGRAMS and inputs % (256 * splits) == 0:
        splits *= 2
    return splits


def choose_config(x: torch.Tensor, rows: int, splits: int) -> FixedConfig:
    """Tiles for so many rows. The order of additions is that of `splits`, whatever the rows."""
    if not x.is_cuda:
        return SMALL
    config = next(c for most, c in (WIDE if x.element_size() > 2 else CONFIGS) if rows <= most)
    return SERIAL_SPLITS if x.element_size() == 2 and not config.parallel and splits > 1 else config


@triton.jit
def _one_split(
    x_row, w_row, start, end, k, K, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
    STAGES: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The sums over the inputs from start to end, [OUTPUTS, ROWS]"""
    acc = tl.zeros([OUTPUTS, ROWS], tl.float32)
    for at in tl.range(start, end, INPUTS, num_stages=STAGES):
        if EVEN:
            x = tl.load(x_row + at)
            w = tl.load(w_row + at)
        else:
            inside = (at + k < K)[None, :]
            x = tl.load(x_row + at, mask=inside, other=0.0)
            w = tl.load(w_row + at, mask=inside, other=0.0)
        acc = tl.dot(w, tl.trans(x), acc, input_precision=PRECISION)
    return acc


@triton.jit(do_not_specialize=["M"])
def _fixed_linear_kernel(
    x_ptr, w_ptr, bias_ptr, y_ptr, part_ptr, count_ptr, M, N, K, stride_x, split_inputs,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, STAGES: tl.constexpr, SPLITS: tl.constexpr,
    PARALLEL: tl.constexpr, EVEN: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: OUTPUTS outputs of ROWS rows, over one split of the inputs or over all."""
    pid, pid_k = tl.program_id(0), tl.program_id(1)
    tiles_m = tl.cdiv(M, ROWS)
    tiles_n = tl.cdiv(N, OUTPUTS)
    # eight tiles of rows go through the outputs together: what they read stays in the L2 cache
    wide = 8 * tiles_n
    first_m = pid // wide * 8
    height = tl.minimum(tiles_m - first_m, 8)
    pid_m = first_m + pid % wide % height
    pid_n = pid % wide // height
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    m = pid_m * ROWS + tl.arange(0, ROWS)
    n = pid_n * OUTPUTS + tl.arange(0, OUTPUTS)
    k = tl.arange(0, INPUTS)
    x_row = x_ptr + tl.where(m < M, m, 0).to(tl.int64)[:, None] * stride_x + k[None, :]
    w_row = w_ptr + tl.where(n < N, n, 0).to(tl.int64)[:, None] * K + k[None, :]
    start = pid_k * split_inputs
    total = _one_split(
        x_row, w_row, start, start + split_inputs, k, K, ROWS, OUTPUTS, INPUTS, STAGES, EVEN, PRECISION
    )  # fmt: skip
    if SPLITS > 1 and not PARALLEL:
        for split in range(1, SPLITS):
            start = split * split_inputs
            total += _one_split(
                x_row, w_row, start, start + split_inputs, k, K, ROWS, OUTPUTS, INPUTS, STAGES, EVEN, PRECISION
            )  # fmt: skip
    offsets = m[None, :].to(tl.int64) * N + n[:, None]
    inside = (m[None, :] < M) & (n[:, None] < N)
    if PARALLEL and SPLITS > 1:
        tl.store(part_ptr + pid_k * M.to(tl.int64) * N + offsets, total, mask=inside)
        tl.debug_barrier()
        if tl.atomic_add(count_ptr + pid, 1, sem="acq_rel") == SPLITS - 1:
            total = tl.load(part_ptr + offsets, mask=inside, other=0.0, cache_modifier=".cg")
            for i in range(1, SPLITS):
                part = part_ptr + i * M.to(tl.int64) * N + offsets
                total += tl.load(part, mask=inside, other=0.0, cache_modifier=".cg")
            tl.store(count_ptr + pid, 0)  # ready for the next launch
            if BIAS:
                total += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)[:, None]
            tl.store(y_ptr + offsets, total.to(y_ptr.dtype.element_ty), mask=inside)
    else:
        if BIAS:
            total += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)[:, None]
        tl.store(y_ptr + offsets, total.to(y_ptr.dtype.element_ty), mask=inside)


def fixed_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, config: FixedConfig | None = None
) -> torch.Tensor:
    """x: [..., in]; weight: [out, in] contiguous -> [..., out]"""
    outputs, inputs = weight.shape
    rows = x.numel() // inputs
    y = torch.empty(*x.shape[:-1], outputs, dtype=x.dtype, device=x.device)
    if rows == 0:
        return y
    flat = x.reshape(rows, inputs)
    if flat.stride(1) != 1:
        flat = flat.contiguous()
    splits = choose_splits(outputs, inputs)
    config = config or choose_config(x, rows, splits)
    tiles = cdiv(rows, config.rows) * cdiv(outputs, config.outputs)
    part, count = y, y
    if config.parallel and splits > 1:
        part, count = workspace(x.device, splits * rows * outputs, tiles)
    pdl = has_pdl(x)
    stages = config.stages if pdl else min(config.stages, 2)
    launch(
        _fixed_linear_kernel, (tiles, splits if config.parallel else 1),
        flat, weight, weight if bias is None else bias, y, part, count, rows, outputs, inputs, flat.stride(0),
        cdiv(inputs, splits), ROWS=config.rows, OUTPUTS=config.outputs, INPUTS=config.inputs, STAGES=stages,
        SPLITS=splits, PARALLEL=config.parallel, EVEN=inputs % (splits * config.inputs) == 0, BIAS=bias is not None,
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32", PDL=pdl, **options(pdl, num_warps=config.warps),
    )  # fmt: skip
    return y
