"""The kernel of tiled_linear.py with a warp of its own that fetches: the next tile's weights arrive while one is added up.

In Gluon, where warps may have different tasks on Hopper (tl.range's warp_specialize does nothing there). One warp keeps
STAGES steps on their way, across tiles, and starts with the weights before the kernel before has ended (programmatic
dependent launch); the others multiply, and add and store as tiled_linear.py says. Gluon has no interpreter: the
arithmetic of stretches, owners and parts is that file's, line by line, which the interpreter runs.

At 256 rows the other kernels' times on an H100 agree with what they read from the L2 cache at about 7.3 TB/s (every tile
of outputs reads x again; benchmarks/README.md). So there is a kernel of the largest tile that the registers hold.
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


@gluon.jit
def _fetch_large(
    a_desc, b_desc, bar, a_buffer, b_buffer, tile, step, INPUTS: gl.constexpr, SILU: gl.constexpr
):  # fmt: skip
    """192 rows of the weight: 128 and 64. Of gate and up 8 rows take turns, so that both are in one thread."""
    if SILU:
        _fetch(a_desc, [tile * 12, 0, 0, step * INPUTS], bar, a_buffer)
        _fetch(b_desc, [tile * 12 + 8, 0, 0, step * INPUTS], bar, b_buffer)
    else:
        _fetch(a_desc, [tile * 192, step * INPUTS], bar, a_buffer)
        _fetch(b_desc, [tile * 192 + 128, step * INPUTS], bar, b_buffer)


@gluon.jit
def _produce_large(
    x_desc, a_desc, b_desc, x_buffers, a_buffers, b_buffers, ready, empty, first, last, steps, pid_m,
    ROWS: gl.constexpr, INPUTS: gl.constexpr, STAGES: gl.constexpr, SILU: gl.constexpr,
):  # fmt: skip
    """As _produce."""
    BYTES: gl.constexpr = (ROWS + 192) * INPUTS * 2
    ahead = gl.minimum(STAGES, last - first)
    for i in range(ahead):
        bar = ready.index(i)
        tile, step = (first + i) // steps, (first + i) % steps
        mbarrier.expect(bar, BYTES)
        _fetch_large(a_desc, b_desc, bar, a_buffers.index(i), b_buffers.index(i), tile, step, INPUTS, SILU)
    _wait_for_predecessor()
    for i in range(ahead):
        at = (first + i) % steps * INPUTS
        _fetch(x_desc, [pid_m * ROWS, at], ready.index(i), x_buffers.index(i))
    for turn in range(ahead, last - first):
        i = turn % STAGES
        bar = ready.index(i)
        tile, step = (first + turn) // steps, (first + turn) % steps
        mbarrier.wait(empty.index(i), (turn // STAGES & 1) ^ 1)
        mbarrier.expect(bar, BYTES)
        _fetch_large(a_desc, b_desc, bar, a_buffers.index(i), b_buffers.index(i), tile, step, INPUTS, SILU)
        _fetch(x_desc, [pid_m * ROWS, step * INPUTS], bar, x_buffers.index(i))


@gluon.jit
def _places(COLUMNS: gl.constexpr, ROWS: gl.constexpr, LAYOUT: gl.constexpr):
    left = gl.arange(0, COLUMNS, layout=gl.SliceLayout(1, LAYOUT))
    right = gl.arange(0, ROWS, layout=gl.SliceLayout(0, LAYOUT))
    return left[:, None] * ROWS + right[None, :]


@gluon.jit
def _store_large(
    acc, corner, bias_ptr, y_ptr, pid_m, M, N, COLUMNS: gl.constexpr, ROWS: gl.constexpr, SILU: gl.constexpr,
    BIAS: gl.constexpr,
):  # fmt: skip
    """The sums of COLUMNS rows of the weight, whose first output is `corner`."""
    OUTPUTS: gl.constexpr = COLUMNS // 2 if SILU else COLUMNS
    if SILU:
        gate, up = acc.reshape([COLUMNS // 16, 2, 8, ROWS]).permute((0, 2, 3, 1)).split()
        out = (gate / (1 + gl.exp(-gate)) * up).reshape([OUTPUTS, ROWS])
    else:
        out = acc
    n = gl.arange(0, OUTPUTS, layout=gl.SliceLayout(1, out.type.layout))
    m = gl.arange(0, ROWS, layout=gl.SliceLayout(0, out.type.layout))
    stride = gl.inline_asm_elementwise("mov.u32 $0, $1;", "=r,r", [N], dtype=gl.int32, is_pure=False, pack=1)
    in_n = corner + n < N
    if BIAS:
        out += gl.load(bias_ptr + corner + n, mask=in_n, other=0.0).to(gl.float32)[:, None]
    y = y_ptr + gl.cast(pid_m * ROWS, gl.int64) * N + corner
    inside = (pid_m * ROWS + m < M)[None, :] & in_n[:, None]
    gl.store(y + m[None, :] * stride + n[:, None], out.to(y_ptr.dtype.element_ty), mask=inside)


@gluon.jit
def _consume_large(
    x_buffers, a_buffers, b_buffers, ready, empty, first, last, steps, total, pid, pid_m, tiles_m, group, groups,
    bias_ptr, y_ptr, part_ptr, flag_ptr, M, N, ROWS: gl.constexpr, INPUTS: gl.constexpr, STAGES: gl.constexpr,
    SILU: gl.constexpr, BIAS: gl.constexpr,
):  # fmt: skip
    """As _consume, with the sums in two tensors: 192 is no power of two."""
    A: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[8, 1], instr_shape=[16, ROWS, 16])
    B: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 2], instr_shape=[16, ROWS // 2, 16])
    PART: gl.constexpr = 192 * ROWS
    OUTPUTS: gl.constexpr = 96 if SILU else 192
    _wait_for_predecessor()
    turn = 0
    for tile in range(first // steps, gl.cdiv(last, steps)):
        begin = gl.maximum(first - tile * steps, 0)
        end = gl.minimum(last - tile * steps, steps)
        acc_a = gl.zeros([128, ROWS], gl.float32, layout=A)
        acc_b = gl.zeros([64, ROWS], gl.float32, layout=B)
        for step in range(begin, end):
            i = turn % STAGES
            mbarrier.wait(ready.index(i), turn // STAGES & 1)
            x = x_buffers.index(i).permute((1, 0))
            w_a, w_b = a_buffers.index(i), b_buffers.index(i)
            if SILU:
                w_a, w_b = w_a.reshape([128, INPUTS]), w_b.reshape([64, INPUTS])
            acc_a = warpgroup_mma(w_a, x, acc_a, is_async=True)
            acc_b = warpgroup_mma(w_b, x, acc_b, is_async=True)
            acc_a, acc_b = warpgroup_mma_wait(2, deps=[acc_a, acc_b])
            mbarrier.arrive(empty.index((turn + STAGES - 1) % STAGES), pred=step > begin)
            turn += 1
        acc_a, acc_b = warpgroup_mma_wait(0, deps=[acc_a, acc_b])
        mbarrier.arrive(empty.index((turn + STAGES - 1) % STAGES))
        if begin > 0:
            part = part_ptr + gl.cast(pid, gl.int64) * PART
            gl.store(part + _places(128, ROWS, A), acc_a)
            gl.store(part + 128 * ROWS + _places(64, ROWS, B), acc_b)
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
                part = part_ptr + gl.cast(peer, gl.int64) * PART
                acc_a += gl.load(part + _places(128, ROWS, A), cache_modifier=".cg")
                acc_b += gl.load(part + 128 * ROWS + _places(64, ROWS, B), cache_modifier=".cg")
                _barrier()
                gl.store(flag_ptr + peer, 0)  # ready for the next launch
            corner = tile * OUTPUTS
            _store_large(acc_a, corner, bias_ptr, y_ptr, pid_m, M, N, 128, ROWS, SILU, BIAS)
            corner += OUTPUTS * 2 // 3
            _store_large(acc_b, corner, bias_ptr, y_ptr, pid_m, M, N, 64, ROWS, SILU, BIAS)


@gluon.jit(do_not_specialize=["M", "tiles_m", "groups"])
def _large_kernel(
    x_desc, a_desc, b_desc, bias_ptr, y_ptr, part_ptr, flag_ptr, M, N, K, tiles_m, groups,
    ROWS: gl.constexpr, INPUTS: gl.constexpr, STAGES: gl.constexpr, SILU: gl.constexpr, BIAS: gl.constexpr,
):  # fmt: skip
    """256 rows by 192 of the weight: the largest tile that the registers hold, hence the fewest bytes from the L2 cache."""
    pid = gl.program_id(0)
    pid_m = pid % tiles_m
    group = groups - 1 - pid // tiles_m
    steps = gl.cdiv(K, INPUTS)
    total = gl.cdiv(N, 96 if SILU else 192) * steps
    first = group * total // groups
    last = (group + 1) * total // groups
    dtype: gl.constexpr = y_ptr.dtype.element_ty
    x_buffers = gl.allocate_shared_memory(dtype, [STAGES, ROWS, INPUTS], x_desc.layout)
    a_buffers = gl.allocate_shared_memory(dtype, [STAGES] + a_desc.block_type.shape, a_desc.layout)
    b_buffers = gl.allocate_shared_memory(dtype, [STAGES] + b_desc.block_type.shape, b_desc.layout)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(ready.index(i), count=1)
        mbarrier.init(empty.index(i), count=1)
    _launch_dependents()
    gl.warp_specialize(
        [
            (
                _consume_large,
                (
                    x_buffers, a_buffers, b_buffers, ready, empty, first, last, steps, total, pid, pid_m, tiles_m,
                    group, groups, bias_ptr, y_ptr, part_ptr, flag_ptr, M, N, ROWS, INPUTS, STAGES, SILU, BIAS,
                ),
            ),
            (
                _produce_large,
                (
                    x_desc, a_desc, b_desc, x_buffers, a_buffers, b_buffers, ready, empty, first, last, steps, pid_m,
                    ROWS, INPUTS, STAGES, SILU,
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
    x_block = [config.rows, config.inputs]
    x_layout = gl.NVMMASharedLayout.get_default_for(x_block, dtype)
    x_desc = TensorDescriptor(x, [rows, inputs], [inputs, 1], x_block, x_layout)
    how = {"num_warps": config.warps, "maxnreg": max_registers(config), "launch_pdl": True}
    if config.large:
        shape, strides = list(weight.shape), [inputs, 1]
        if silu:  # 8 rows of gate, 8 of up, and so on
            shape, strides = [outputs // 8, 2, 8, inputs], [8 * inputs, outputs * inputs, inputs, 1]
        descs = []
        for block in large_blocks(config, silu):
            layout = gl.NVMMASharedLayout.get_default_for(block, dtype)
            descs.append(TensorDescriptor(weight, shape, strides, block, layout))
        launch(
            _large_kernel, (groups * tiles_m,),
            x_desc, *descs, weight if bias is None else bias, y, part, flags, rows, outputs, inputs, tiles_m, groups,
            ROWS=config.rows, INPUTS=config.inputs, STAGES=config.stages, SILU=silu, BIAS=bias is not None, **how,
        )  # fmt: skip
        return
    w_block = [config.outputs, config.inputs]
    w_layout = gl.NVMMASharedLayout.get_default_for(w_block, dtype)
    launch(
        _streamed_kernel, (groups * tiles_m,),
        x_desc, TensorDescriptor(weight, list(weight.shape), [inputs, 1], w_block, w_layout),
        weight if bias is None else bias, y, part, flags, rows, outputs, inputs, tiles_m, groups, ROWS=config.rows,
        OUTPUTS=config.outputs, INPUTS=config.inputs, STAGES=config.stages, SWAP=config.swap, SILU=silu,
        BIAS=bias is not None, WARPS=config.warps, **how,
    )  # fmt: skip


def large_blocks(config: TiledConfig, silu: bool) -> list[list[int]]:
    """Of the two descriptors of the weight: 128 and 64 rows."""
    return [[r // 16, 2, 8, config.inputs] if silu else [r, config.inputs] for r in (128, 64)]
