"""The kernel of tiled_linear.py with a warp of its own that fetches: the next tile's weights arrive while one is added up.

In Gluon, where warps may have different tasks on Hopper (tl.range's warp_specialize does nothing there). One warp keeps
STAGES steps on their way, across tiles, and starts with the weights before the kernel before has ended (programmatic
dependent launch); the others multiply, and add and store as tiled_linear.py says. Gluon has no interpreter: the
arithmetic of stretches, owners and parts is that file's, line by line, which the interpreter runs.
"""

from __future__ import annotations

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from core.kernels.launch import launch
from core.kernels.linear_configs import TiledConfig

PRODUCER_REGISTERS = gl.constexpr(24)
# Triton 3.6 has the second names, 3.9 the first
_barrier = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier
_fetch = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared


@gluon.jit
def _launch_dependents():
    gl.inline_asm_elementwise(
        "griddepcontrol.launch_dependents; mov.u32 $0, 0;", "=r", [], dtype=gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def _wait_for_predecessor():
    gl.inline_asm_elementwise("griddepcontrol.wait; mov.u32 $0, 0;", "=r", [], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def _fetch_weights(w_desc, bar, buffer, tile, step, N, OUTPUTS: gl.constexpr, INPUTS: gl.constexpr, SILU: gl.constexpr):
    if SILU:
        _fetch(w_desc, [tile * OUTPUTS, step * INPUTS], bar, buffer.slice(0, OUTPUTS))
        up = buffer.slice(OUTPUTS, OUTPUTS)
        _fetch(w_desc, [N + tile * OUTPUTS, step * INPUTS], bar, up)
    else:
        _fetch(w_desc, [tile * OUTPUTS, step * INPUTS], bar, buffer)


@gluon.jit
def _produce(
    x_desc, w_desc, x_buffers, w_buffers, ready, empty, first, last, steps, pid_m, N,
    ROWS: gl.constexpr, OUTPUTS: gl.constexpr, INPUTS: gl.constexpr, STAGES: gl.constexpr, SILU: gl.constexpr,
):  # fmt: skip
    """Unit i of the stretch goes to buffer i % STAGES, when what was there is used up."""
    BYTES: gl.constexpr = (ROWS + (2 * OUTPUTS if SILU else OUTPUTS)) * INPUTS * 2
    ahead = gl.minimum(STAGES, last - first)
    for i in range(ahead):
        unit = first + i
        bar = ready.index(i)
        mbarrier.expect(bar, BYTES)
        _fetch_weights(w_desc, bar, w_buffers.index(i), unit // steps, unit % steps, N, OUTPUTS, INPUTS, SILU)
    _wait_for_predecessor()
    for i in range(ahead):
        at = (first + i) % steps * INPUTS
        _fetch(x_desc, [pid_m * ROWS, at], ready.index(i), x_buffers.index(i))
    for turn in range(ahead, last - first):
        unit = first + turn
        i = turn % STAGES
        bar = ready.index(i)
        mbarrier.wait(empty.index(i), (turn // STAGES & 1) ^ 1)
        mbarrier.expect(bar, BYTES)
        _fetch_weights(w_desc, bar, w_buffers.index(i), unit // steps, unit % steps, N, OUTPUTS, INPUTS, SILU)
        _fetch(x_desc, [pid_m * ROWS, unit % steps * INPUTS], bar, x_buffers.index(i))


@gluon.jit
def _consume(
    x_buffers, w_buffers, ready, empty, first, last, steps, total, pid, pid_m, tiles_m, group, groups, bias_ptr, y_ptr,
    part_ptr, flag_ptr, M, N, ROWS: gl.constexpr, OUTPUTS: gl.constexpr, STAGES: gl.constexpr, SWAP: gl.constexpr,
    SILU: gl.constexpr, BIAS: gl.constexpr, LAYOUT: gl.constexpr,
):  # fmt: skip
    COLUMNS: gl.constexpr = 2 * OUTPUTS if SILU else OUTPUTS
    LEFT: gl.constexpr = COLUMNS if SWAP else ROWS
    RIGHT: gl.constexpr = ROWS if SWAP else COLUMNS
    _wait_for_predecessor()
    turn = 0
    for tile in range(first // steps, gl.cdiv(last, steps)):
        begin = gl.maximum(first - tile * steps, 0)
        end = gl.minimum(last - tile * steps, steps)
        acc = gl.zeros([LEFT, RIGHT], gl.float32, layout=LAYOUT)
        for step in range(begin, end):
            i = turn % STAGES
            mbarrier.wait(ready.index(i), turn // STAGES & 1)
            if SWAP:
                acc = warpgroup_mma(w_buffers.index(i), x_buffers.index(i).permute((1, 0)), acc, is_async=True)
            else:
                acc = warpgroup_mma(x_buffers.index(i), w_buffers.index(i).permute((1, 0)), acc, is_async=True)
            # the step before has been read when this one alone is under way
            acc = warpgroup_mma_wait(1, deps=[acc])
            mbarrier.arrive(empty.index((turn + STAGES - 1) % STAGES), pred=step > begin)
            turn += 1
        acc = warpgroup_mma_wait(0, deps=[acc])
        mbarrier.arrive(empty.index((turn + STAGES - 1) % STAGES))
        left = gl.arange(0, LEFT, layout=gl.SliceLayout(1, LAYOUT))
        right = gl.arange(0, RIGHT, layout=gl.SliceLayout(0, LAYOUT))
        place = left[:, None] * RIGHT + right[None, :]
        if begin > 0:
            gl.store(part_ptr + gl.cast(pid, gl.int64) * (ROWS * COLUMNS) + place, acc)
            _barrier()
            gl.atomic_xchg(flag_ptr + pid, 1, sem="release")
        else:
            peer = pid
            behind = group
            while (behind + 1) * total // groups < (tile + 1) * steps:
                behind += 1
                peer -= tiles_m
                while gl.atomic_add(flag_ptr + peer, 0, sem="acquire") == 0:
                    pass
                part = part_ptr + gl.cast(peer, gl.int64) * (ROWS * COLUMNS)
                acc += gl.load(part + place, cache_modifier=".cg")
                _barrier()
                gl.store(flag_ptr + peer, 0)  # ready for the next launch
            if SILU:
                gate, up = acc.reshape([ROWS, 2, OUTPUTS]).permute((0, 2, 1)).split()
                out = gate / (1 + gl.exp(-gate)) * up
            else:
                out = acc
            N_DIM: gl.constexpr = 1 if SWAP else 0
            n = gl.arange(0, OUTPUTS, layout=gl.SliceLayout(N_DIM, out.type.layout))
            m = gl.arange(0, ROWS, layout=gl.SliceLayout(1 - N_DIM, out.type.layout))
            # hidden from the compiler, which would keep m * N of all elements in registers, for every tile alike
            stride = gl.inline_asm_elementwise(
                "mov.u32 $0, $1;", "=r,r", [N], dtype=gl.int32, is_pure=False, pack=1
            )  # fmt: skip
            # from the tile's corner on 32 bits are enough
            y = y_ptr + gl.cast(pid_m * ROWS, gl.int64) * N + tile * OUTPUTS
            in_n = tile * OUTPUTS + n < N
            in_m = pid_m * ROWS + m < M
            if BIAS:
                bias = gl.load(bias_ptr + tile * OUTPUTS + n, mask=in_n, other=0.0).to(gl.float32)
                out += bias[:, None] if SWAP else bias[None, :]
            if SWAP:
                offsets, inside = m[None, :] * stride + n[:, None], in_m[None, :] & in_n[:, None]
            else:
                offsets, inside = m[:, None] * stride + n[None, :], in_m[:, None] & in_n[None, :]
            gl.store(y + offsets, out.to(y_ptr.dtype.element_ty), mask=inside)


@gluon.jit(do_not_specialize=["M", "tiles_m", "groups"])
def _streamed_kernel(
    x_desc, w_desc, bias_ptr, y_ptr, part_ptr, flag_ptr, M, N, K, tiles_m, groups,
    ROWS: gl.constexpr, OUTPUTS: gl.constexpr, INPUTS: gl.constexpr, STAGES: gl.constexpr, SWAP: gl.constexpr,
    SILU: gl.constexpr, BIAS: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    pid = gl.program_id(0)
    pid_m = pid % tiles_m
    # the last stretch first: an owner waits only for programs that were started before it
    group = groups - 1 - pid // tiles_m
    steps = gl.cdiv(K, INPUTS)
    total = gl.cdiv(N, OUTPUTS) * steps
    first = group * total // groups
    last = (group + 1) * total // groups
    COLUMNS: gl.constexpr = 2 * OUTPUTS if SILU else OUTPUTS
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[WARPS, 1], instr_shape=[16, ROWS if SWAP else COLUMNS, 16]
    )
    dtype: gl.constexpr = y_ptr.dtype.element_ty
    x_buffers = gl.allocate_shared_memory(dtype, [STAGES, ROWS, INPUTS], x_desc.layout)
    w_buffers = gl.allocate_shared_memory(dtype, [STAGES, COLUMNS, INPUTS], w_desc.layout)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(ready.index(i), count=1)
        mbarrier.init(empty.index(i), count=1)
    _launch_dependents()
    gl.warp_specialize(
        [
            (
                _consume,
                (
                    x_buffers, w_buffers, ready, empty, first, last, steps, total, pid, pid_m, tiles_m, group, groups,
                    bias_ptr, y_ptr, part_ptr, flag_ptr, M, N, ROWS, OUTPUTS, STAGES, SWAP, SILU, BIAS, LAYOUT,
                ),
            ),
            (
                _produce,
                (
                    x_desc, w_desc, x_buffers, w_buffers, ready, empty, first, last, steps, pid_m, N, ROWS, OUTPUTS,
                    INPUTS, STAGES, SILU,
                ),
            ),
        ],
        [1],
        [PRODUCER_REGISTERS],
    )  # fmt: skip


def max_registers(config: TiledConfig) -> int:
    """Of a thread at the start, when all warps have the same; the fetching ones hand most of theirs over."""
    return 65536 // (config.blocks * 32 * (config.warps + 4)) // 8 * 8 if config.warps > 4 or config.blocks > 1 else 240


def streamed_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    y: torch.Tensor,
    part: torch.Tensor,
    flags: torch.Tensor,
    silu: bool,
    groups: int,
    config: TiledConfig,
) -> None:
    """What tiled_linear has checked and made: x [rows, in], y [..., out], the workspace."""
    rows, inputs = x.shape
    outputs = y.shape[-1]
    tiles_m = triton.cdiv(rows, config.rows)
    dtype = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16}[x.dtype]
    x_block, w_block = [config.rows, config.inputs], [config.outputs, config.inputs]
    x_layout = gl.NVMMASharedLayout.get_default_for(x_block, dtype)
    w_layout = gl.NVMMASharedLayout.get_default_for(w_block, dtype)
    launch(
        _streamed_kernel, (groups * tiles_m,),
        TensorDescriptor(x, [rows, inputs], [inputs, 1], x_block, x_layout),
        TensorDescriptor(weight, list(weight.shape), [inputs, 1], w_block, w_layout),
        weight if bias is None else bias, y, part, flags, rows, outputs, inputs, tiles_m, groups, ROWS=config.rows,
        OUTPUTS=config.outputs, INPUTS=config.inputs, STAGES=config.stages, SWAP=config.swap, SILU=silu,
        BIAS=bias is not None, WARPS=config.warps, num_warps=config.warps, maxnreg=max_registers(config),
        launch_pdl=True,
    )  # fmt: skip
