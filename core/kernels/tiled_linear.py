"""y = x W^T (+ bias) for tens to hundreds of rows of x, on all multiprocessors alike; optionally SiLU(gate) * up.

A weight's tiles rarely fill the device in whole turns: 48 tiles leave 84 of 132 multiprocessors idle. Here the steps of
all tiles lie on one line, and each program takes an equal stretch of it (stream-K, arXiv:2301.03598). A tile belongs to
the program that has its first step; the programs behind leave their sums in a workspace, and the owner adds them in
their order, so a result does not change from run to run. A program has only one such part, its first, which is done
before the owner ends: nobody waits long. Flags are zeros again when the kernel ends.

Weights and activations come by tensor descriptors (TMA): for Hopper. Rows, outputs and inputs may be ragged. With
`producer` in the configuration streamed_linear.py's kernel runs instead, the same but for who fetches.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.tools.tensor_descriptor import TensorDescriptor

from core.kernels.launch import has_pdl, launch, num_multiprocessors, options
from core.kernels.linear_configs import TiledConfig
from core.kernels.skinny_linear import prefetch, skinny_linear_reference, workspace

__all__ = ["skinny_linear_reference", "tiled_linear"]


@triton.jit
def _prefetch_tile(
    w_ptr, tile, step, N, K, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, STAGES: tl.constexpr, SILU: tl.constexpr
):  # fmt: skip
    """Bring the first weights of a tile to the L2 cache."""
    row = tl.minimum(tile * OUTPUTS + tl.arange(0, OUTPUTS), N - 1)
    line = tl.arange(0, INPUTS // 64) * 64  # 128 bytes of two-byte numbers
    w_row = w_ptr + row[:, None].to(tl.int64) * K + step * INPUTS + line[None, :]
    for stage in tl.static_range(STAGES):
        if (step + stage + 1) * INPUTS <= K:
            prefetch(w_row + stage * INPUTS)
            if SILU:
                prefetch(w_row + tl.cast(N, tl.int64) * K + stage * INPUTS)


@triton.jit(do_not_specialize=["M", "tiles_m", "groups"])
def _tiled_kernel(
    x_desc, w_desc, w_ptr, bias_ptr, y_ptr, part_ptr, flag_ptr, M, N, K, tiles_m, groups,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, STAGES: tl.constexpr, SWAP: tl.constexpr,
    SILU: tl.constexpr, BIAS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A stretch of the steps of ROWS rows. Neighbours are the other tiles of rows: they read the same weights at once."""
    pid = tl.program_id(0)
    pid_m = pid % tiles_m
    # the last stretch first: an owner waits only for programs that were started before it
    group = groups - 1 - pid // tiles_m
    steps = tl.cdiv(K, INPUTS)
    total = tl.cdiv(N, OUTPUTS) * steps
    first = group * total // groups
    last = (group + 1) * total // groups
    if PDL:
        gdc_launch_dependents()
        if pid_m == 0:
            _prefetch_tile(w_ptr, first // steps, first % steps, N, K, OUTPUTS, INPUTS, STAGES, SILU)
        gdc_wait()
    # of gate and up one matrix instruction computes both
    COLUMNS: tl.constexpr = 2 * OUTPUTS if SILU else OUTPUTS
    LEFT: tl.constexpr = COLUMNS if SWAP else ROWS
    RIGHT: tl.constexpr = ROWS if SWAP else COLUMNS
    place = tl.arange(0, LEFT)[:, None] * RIGHT + tl.arange(0, RIGHT)[None, :]
    # what does not change in this loop is cheap to compute again and dear to keep beside the sums
    for tile in tl.range(first // steps, tl.cdiv(last, steps), disable_licm=True):
        begin = tl.maximum(first - tile * steps, 0)
        end = tl.minimum(last - tile * steps, steps)
        acc = tl.zeros([LEFT, RIGHT], tl.float32)
        for step in tl.range(begin, end, num_stages=STAGES):
            x = x_desc.load([pid_m * ROWS, step * INPUTS])
            if SILU:
                w = w_desc.load([0, tile * OUTPUTS, step * INPUTS]).reshape(COLUMNS, INPUTS)
            else:
                w = w_desc.load([tile * OUTPUTS, step * INPUTS])
            if SWAP:
                acc = tl.dot(w, tl.trans(x), acc)
            else:
                acc = tl.dot(x, tl.trans(w), acc)
        if PDL and (tile + 1) * steps < last and pid_m == 0:
            _prefetch_tile(w_ptr, tile + 1, 0, N, K, OUTPUTS, INPUTS, STAGES, SILU)
        if begin > 0:
            tl.store(part_ptr + tl.cast(pid, tl.int64) * (ROWS * COLUMNS) + place, acc)
            tl.debug_barrier()
            tl.atomic_xchg(flag_ptr + pid, 1, sem="release")
        else:
            peer = pid
            behind = group
            while (behind + 1) * total // groups < (tile + 1) * steps:
                behind += 1
                peer -= tiles_m
                while tl.atomic_add(flag_ptr + peer, 0, sem="acquire") == 0:
                    pass
                acc += tl.load(part_ptr + tl.cast(peer, tl.int64) * (ROWS * COLUMNS) + place, cache_modifier=".cg")
                tl.debug_barrier()
                tl.store(flag_ptr + peer, 0)  # ready for the next launch
            # from the tile's corner on 32 bits are enough
            y = y_ptr + tl.cast(pid_m * ROWS, tl.int64) * N + tile * OUTPUTS
            m = tl.arange(0, ROWS)
            n = tl.arange(0, OUTPUTS)
            in_m = pid_m * ROWS + m < M
            in_n = tile * OUTPUTS + n < N
            if BIAS:
                bias = tl.load(bias_ptr + tile * OUTPUTS + n, mask=in_n, other=0.0).to(tl.float32)
                acc += bias[:, None] if SWAP else bias[None, :]
            if SWAP:
                offsets = m[None, :] * N + n[:, None]
                inside = in_m[None, :] & in_n[:, None]
            else:
                offsets = m[:, None] * N + n[None, :]
                inside = in_m[:, None] & in_n[None, :]
            if SILU:
                if SWAP:
                    gate, up = acc.reshape(2, OUTPUTS, ROWS).permute(1, 2, 0).split()
                else:
                    gate, up = acc.reshape(ROWS, 2, OUTPUTS).permute(0, 2, 1).split()
                gate = gate / (1 + tl.exp(-gate)) * up
                tl.store(y + offsets, gate.to(y_ptr.dtype.element_ty), mask=inside)
            else:
                tl.store(y + offsets, acc.to(y_ptr.dtype.element_ty), mask=inside)


def count_groups(config: TiledConfig, rows: int, outputs: int, inputs: int, multiprocessors: int) -> int:
    """How many stretches the steps of a tile of rows are cut into: no more than can run at once."""
    tiles = triton.cdiv(outputs, config.outputs)
    most = max(1, multiprocessors * config.blocks // triton.cdiv(rows, config.rows))
    return min(most, tiles * min(config.splits, triton.cdiv(inputs, config.inputs)))


def tiled_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    silu: bool = False,
    *,
    config: TiledConfig,
) -> torch.Tensor:
    """x: [..., in]; weight: [out, in], or [2 * out, in] (gate, then up) with silu -> [..., out]"""
    inputs = weight.shape[1]
    outputs = weight.shape[0] // 2 if silu else weight.shape[0]
    rows = x.numel() // inputs
    if x.shape[-1] != inputs or rows == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}; it must have rows of {inputs}")
    if inputs * x.element_size() % 16:
        raise ValueError(f"{inputs} inputs: a tensor descriptor wants rows of a multiple of 16 bytes")
    if silu and bias is not None:
        raise ValueError("no kernel adds a bias before SiLU")
    if config.producer and x.element_size() != 2:
        raise ValueError(f"{config}: the kernel with a warp that fetches takes 2-byte numbers")
    if config.producer and silu and config.swap != config.large:
        raise ValueError(f"{config}: with SiLU the kernel with a warp that fetches is swapped if a tile has 96 outputs")
    if config.large and (config.outputs != (96 if silu else 192) or not config.swap or config.warps != 8):
        raise ValueError(f"{config}: a large tile has 192 outputs, 96 with SiLU, is swapped and has 8 warps")
    if config.large and silu and outputs % 8:
        raise ValueError(f"{outputs} outputs: large tiles with SiLU want a multiple of 8")
    flat = x.reshape(rows, inputs).contiguous()
    y = torch.empty(*x.shape[:-1], outputs, dtype=x.dtype, device=x.device)
    tiles_m = triton.cdiv(rows, config.rows)
    groups = count_groups(config, rows, outputs, inputs, num_multiprocessors(x))
    programs = groups * tiles_m
    part, flags = workspace(x.device, programs * config.rows * config.outputs * (1 + silu), programs)
    if config.producer:
        from core.kernels.streamed_linear import streamed_linear

        streamed_linear(flat, weight, bias, y, part, flags, silu, groups, config)
        return y
    x_desc = TensorDescriptor(flat, [rows, inputs], [inputs, 1], [config.rows, config.inputs])
    if silu:
        halves, strides = [2, outputs, inputs], [outputs * inputs, inputs, 1]
        w_desc = TensorDescriptor(weight, halves, strides, [2, config.outputs, config.inputs])
    else:
        w_desc = TensorDescriptor(weight, [outputs, inputs], [inputs, 1], [config.outputs, config.inputs])
    pdl = has_pdl(x)
    launch(
        _tiled_kernel, (programs,),
        x_desc, w_desc, weight, weight if bias is None else bias, y, part, flags, rows, outputs, inputs, tiles_m,
        groups, ROWS=config.rows, OUTPUTS=config.outputs, INPUTS=config.inputs, STAGES=config.stages, SWAP=config.swap,
        SILU=silu, BIAS=bias is not None, PDL=pdl, **options(pdl, num_warps=config.warps),
    )  # fmt: skip
    return y
