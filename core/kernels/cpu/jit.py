"""What every CPU kernel stands on: compiled once a machine and kept on disk, run by one thread or by several, alone or in a row.

A kernel takes addresses and sizes, as a Triton kernel does: a torch tensor's `data_ptr()` costs a tenth of its
`numpy()`, and a decode step makes some hundred calls. It is compiled to a C function of (address of its numbers, share,
shares) that does its share of the work, so a whole step of calls can be run by one team of threads with nothing but a
barrier between two of them (`Program`). Imported by the first tensor that a kernel is for, since it imports numba (0.4 s).
"""

from __future__ import annotations

import contextlib
import os
import platform
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic as _intrinsic
from numba.np.unsafe.ndarray import to_fixed_tuple

from core.kernels.cpu.pace import Pace

FASTMATH = {"reassoc", "contract", "nsz", "arcp"}
"""Sums may be reordered and multiplications fused, which vectors need; NaN and infinity stay what they are."""

SERIAL_WORK = 1 << 16
"""Below so many operations, some 5 us of one thread, a second one is not woken: that alone costs as much."""
SPINS = 1 << 9
"""Rounds that a thread waits for another, some 15 us, before it offers its core at each: the other may be waiting for it."""
WORK_A_ROUND = 1 << 9
"""Operations of one thread in the time of such an offer, or rather less: what waits for the team to come together gives up
when it could have done the work alone."""
MAX_THREADS = int(numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
"""As many as there are cores, unless the variable of this name says otherwise."""
MAX_NUMBERS = 32
"""Arguments of a kernel."""
_INT64 = ir.IntType(64)
_PAUSES: dict[str, tuple[str, tuple[int, ...]]] = {
    **dict.fromkeys(("x86_64", "AMD64"), ("llvm.x86.sse2.pause", ())),
    **dict.fromkeys(("aarch64", "arm64"), ("llvm.aarch64.hint", (1,))),
}
"""What tells a processor that a loop waits: LLVM's name and its arguments."""


intrinsic: Callable[..., Any] = _intrinsic
"""Its own type counts the typing context among the arguments of a call."""


# ---- parts that kernels call


def _pointers(kind: Any, made: Any) -> Any:
    @intrinsic
    def pointer(typing_context, address):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            return builder.inttoptr(arguments[0], made.as_pointer())

        return types.CPointer(kind)(address), generate

    return pointer


_float32_pointer = _pointers(types.float32, ir.FloatType())
_int64_pointer = _pointers(types.int64, _INT64)
_int32_pointer = _pointers(types.int32, ir.IntType(32))


@intrinsic
def real(typing_context, number):  # type: ignore[no-untyped-def]
    """A float among a kernel's numbers."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.bitcast(arguments[0], ir.DoubleType())

    return types.float64(types.int64), generate


@intrinsic
def _as_float32(typing_context, bits):  # type: ignore[no-untyped-def]
    """The float32 with these bits, of an int32."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


def inlined(function: Callable[..., Any]) -> Any:
    """A part that kernels call."""
    return numba.njit(fastmath=FASTMATH)(function)


@inlined
def float32s(address, shape):  # type: ignore[no-untyped-def]
    """The contiguous float32 array that lies there."""
    return numba.carray(_float32_pointer(address), shape)  # type: ignore[call-arg]


@inlined
def int64s(address, shape):  # type: ignore[no-untyped-def]
    """The contiguous int64 array that lies there."""
    return numba.carray(_int64_pointer(address), shape)  # type: ignore[call-arg]


@inlined
def int32s(address, shape):  # type: ignore[no-untyped-def]
    """The contiguous int32 array that lies there."""
    return numba.carray(_int32_pointer(address), shape)  # type: ignore[call-arg]


@inlined
def exp(x):  # type: ignore[no-untyped-def]
    """e to the power of a float32, to 1.2e-7 of it, in a form that loops can do by vectors, as the library's cannot.

    Below -87 as of -87 (2e-38), above 88 as of 88 (2e38); NaN stays NaN.
    """
    within = np.float32(-87) if not x > np.float32(-87) else x
    within = np.float32(88) if within > np.float32(88) else within
    power = np.floor(within * np.float32(1.44269504) + np.float32(0.5))
    # ln 2 in two parts: the first has so few bits that the product is exact
    rest = within - power * np.float32(0.693359375) + power * np.float32(2.12194440e-4)
    sum_ = np.float32(1.9875691500e-4)
    sum_ = sum_ * rest + np.float32(1.3981999507e-3)
    sum_ = sum_ * rest + np.float32(8.3334519073e-3)
    sum_ = sum_ * rest + np.float32(4.1665795894e-2)
    sum_ = sum_ * rest + np.float32(1.6666665459e-1)
    sum_ = sum_ * rest + np.float32(5.0000001201e-1)
    sum_ = sum_ * rest * rest + rest + np.float32(1)
    found = sum_ * _as_float32(np.int32((np.int32(power) + np.int32(127)) << np.int32(23)))
    return found if x == x else x


@inlined
def numbers(address, count):  # type: ignore[no-untyped-def]
    """A kernel's arguments. count: a literal"""
    return to_fixed_tuple(int64s(address, (count,)), count)  # type: ignore[call-arg]


@inlined
def part(count, share, shares):  # type: ignore[no-untyped-def]
    """Which of `count` pieces of work this share does."""
    return range(count * share // shares, count * (share + 1) // shares)


# ---- a team of threads


@intrinsic
def _add(typing_context, address, number):  # type: ignore[no-untyped-def]
    """Atomic. -> what was there before"""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        at = builder.inttoptr(arguments[0], _INT64.as_pointer())
        return builder.atomic_rmw("add", at, arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def _read(typing_context, address):  # type: ignore[no-untyped-def]
    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        at = builder.inttoptr(arguments[0], _INT64.as_pointer())
        return builder.load_atomic(at, "seq_cst", 8)

    return types.int64(types.int64), generate


@intrinsic
def _replace(typing_context, address, old, new):  # type: ignore[no-untyped-def]
    """Atomic: write `new` where `old` is. -> 1, or 0 where something else was"""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        at = builder.inttoptr(arguments[0], _INT64.as_pointer())
        found = builder.cmpxchg(at, arguments[1], arguments[2], "seq_cst", "seq_cst")
        return builder.zext(builder.extract_value(found, 1), _INT64)

    return types.int64(types.int64, types.int64, types.int64), generate


@intrinsic
def _pause(typing_context):  # type: ignore[no-untyped-def]
    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        if platform.machine() in _PAUSES:
            name, values = _PAUSES[platform.machine()]
            form = ir.FunctionType(ir.VoidType(), [ir.IntType(32)] * len(values))
            builder.call(builder.module.declare_intrinsic(name, fnty=form), [ir.IntType(32)(v) for v in values])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def _do(typing_context, kernel, at, share, shares):  # type: ignore[no-untyped-def]
    """Call the C function at the address `kernel`."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        form = ir.FunctionType(ir.VoidType(), [_INT64] * 3)
        builder.call(builder.inttoptr(arguments[0], form.as_pointer()), arguments[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), generate


_offer = types.ExternalFunction("sched_yield", types.int32()) if os.name == "posix" else _pause
"""Let another program have the core, if one wants it."""
CLOSED = 1 << 32
"""Of a team's gate: nobody enters any more."""


@inlined
def _wait(spins):  # type: ignore[no-untyped-def]
    """Once more. -> one more than before"""
    if spins >= SPINS:
        _offer()
    else:
        _pause()
    return spins + 1


@inlined
def _enter(gate, threads, patience):  # type: ignore[no-untyped-def]
    """-> this thread's number in the team and the team's size, or (-1, 0): it went without this thread.

    The team is who is there when all are, or when one has lost its patience: how many threads a pool gives, and whether one of
    them waits for another program to leave its core, changes how long the work takes and never whether it is done.
    """
    number = _add(gate, 1)
    if number >= CLOSED:
        return -1, 0
    spins = 0
    while True:
        there = _read(gate)
        if there >= CLOSED:
            # those that came too late have been counted too: the size stands above
            return number, there >> 33
        if there == threads or spins > patience:
            _replace(gate, there, (there << 33) | CLOSED)
        else:
            spins = _wait(spins)


@inlined
def _meet(barrier, times, size):  # type: ignore[no-untyped-def]
    """Wait until all of the team are here for the so many-th time."""
    _add(barrier, 1)
    spins = 0
    while _read(barrier) < times * size:
        spins = _wait(spins)


def _run_alone(calls_at, count):  # type: ignore[no-untyped-def]
    """calls: int64 [count, 3] of (kernel, its numbers, whether it is for all of the team)"""
    calls = int64s(calls_at, (count, 3))
    for i in range(count):
        _do(calls[i, 0], calls[i, 1], 0, 1)


def _run(calls_at, count, places_at, threads, patience):  # type: ignore[no-untyped-def]
    """places: int64 [2, 16], the gate and the barrier, on cache lines of their own"""
    places = int64s(places_at, (2, 16))
    places[:] = 0
    for thread in numba.prange(threads):
        calls, gate, barrier = int64s(calls_at, (count, 3)), places_at, places_at + 128
        if count == 1:
            # no barrier: it does not matter who does a share, or when
            if calls[0, 2] != 0:
                _do(calls[0, 0], calls[0, 1], thread, threads)
            elif thread == 0:
                _do(calls[0, 0], calls[0, 1], 0, 1)
            continue
        number, size = _enter(gate, threads, patience)
        if number >= 0:
            for i in range(count):
                if calls[i, 2] != 0:
                    _do(calls[i, 0], calls[i, 1], number, size)
                elif number == 0:
                    _do(calls[i, 0], calls[i, 1], 0, 1)
                if i + 1 < count:
                    _meet(barrier, i + 1, size)


def _compiled(function: Callable[..., Any], parallel: bool) -> Any:
    try:
        return numba.njit(parallel=parallel, nogil=True, cache=True)(function)
    except RuntimeError:
        # neither this folder nor the user's cache can be written: every process compiles for itself
        return numba.njit(parallel=parallel, nogil=True)(function)


_alone, _together = _compiled(_run_alone, False), _compiled(_run, True)


class _Thread(threading.local):
    """What a thread that makes calls has of its own."""

    def __init__(self) -> None:
        self.threads = 0  # what numba was told last
        self.calls: list[Call] | None = None  # where calls are noted
        # one call, and behind it its numbers
        self.call = np.zeros(3 + MAX_NUMBERS, np.int64)
        self.call_at = self.call.ctypes.data
        self.places = np.zeros(64, np.int64)
        self.places_at = self.places.ctypes.data + -self.places.ctypes.data % 128

    def run(self, calls_at: int, count: int, work: float, alone: bool = False) -> None:
        """Alone, or by as many threads as torch has, if numba has them too."""
        threads = 1 if alone else min(torch.get_num_threads(), MAX_THREADS)
        if threads == 1:
            _alone(calls_at, count)
            return
        if threads != self.threads:
            numba.set_num_threads(threads)
            self.threads = threads
        _together(calls_at, count, self.places_at, threads, int(max(SPINS, work // WORK_A_ROUND)))


_thread = _Thread()


class Kernel:
    """A function of (address of its numbers, share, shares) that does that share of a piece of work; `share` 0 of 1 is all.

    Compiled when it is first called, or by `compile_kernels`.
    """

    def __init__(self, function: Callable[[int, int, int], None], form: str) -> None:
        """form: of the numbers, a letter each, as in `struct`: q an integer or an address, d a float."""
        assert len(form) <= MAX_NUMBERS
        self.name = function.__name__.strip("_")
        self._numbers, self._call_with = struct.Struct(form), struct.Struct("3q" + form)
        self._function = function
        self._compiled: Any = None
        self.address = 0
        _made.append(self)

    def __call__(self, work: float, *arguments: float) -> None:
        """work: operations; few are done by one thread, since several cost some 5 us more."""
        thread = _thread
        shared = work >= SERIAL_WORK
        if thread.calls is not None:
            thread.calls.append(Call(self, self._numbers.pack(*arguments), work))
            self._call(thread, shared, work, arguments)  # not traced: what watches a step that is recorded would see it
        elif torch.autograd._profiler_enabled():  # type: ignore[no-untyped-call]
            with torch.profiler.record_function(self.name):
                self._call(thread, shared, work, arguments)
        else:
            self._call(thread, shared, work, arguments)

    def _call(self, thread: _Thread, shared: bool, work: float, arguments: Sequence[float]) -> None:
        address = self.address or self.compile()
        self._call_with.pack_into(thread.call.data, 0, address, thread.call_at + 24, 1, *arguments)
        if shared:
            thread.run(thread.call_at, 1, work)
        else:
            _alone(thread.call_at, 1)

    def compile(self) -> int:
        """-> the C function's address"""
        if not self.address:
            form = types.void(types.int64, types.int64, types.int64)
            try:
                self._compiled = numba.cfunc(form, fastmath=FASTMATH, cache=True)(self._function)
            except RuntimeError:
                self._compiled = numba.cfunc(form, fastmath=FASTMATH)(self._function)
            self.address = self._compiled.address
        return self.address


_made: list[Kernel] = []


def compile_kernels(progress: Callable[[int, int], None]) -> None:
    """All that were imported: from what is kept in some 30 ms each, anew in about a second.

    progress: is called with how many are done, and of how many.
    """
    for done, kernel in enumerate(_made):
        progress(done, len(_made))
        kernel.compile()
    nothing = np.zeros(3, np.int64)
    _alone(nothing.ctypes.data, 0)
    if torch.get_num_threads() > 1:
        _thread.run(nothing.ctypes.data, 0, 0)


@dataclass(frozen=True, slots=True)
class Call:
    """One that was noted."""

    kernel: Kernel
    numbers: bytes
    work: float


@contextlib.contextmanager
def recording() -> Iterator[list[Call]]:
    """Every kernel call that this thread makes: it is made, and noted."""
    calls: list[Call] = []
    _thread.calls = calls
    try:
        yield calls
    finally:
        _thread.calls = None


class Program:
    """Calls one after the other, by one team of threads: what lies at their addresses must live as long as the program."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self.names = [call.kernel.name for call in calls]
        self._work = sum(call.work for call in calls)
        self._numbers = np.frombuffer(b"".join(call.numbers for call in calls), np.int64).copy()
        sizes = [len(call.numbers) for call in calls]
        starts = self._numbers.ctypes.data + np.cumsum([0, *sizes[:-1]])
        shared = [call.work >= SERIAL_WORK for call in calls]
        addresses = [call.kernel.compile() for call in calls]
        self._calls = np.array([addresses, starts.tolist(), shared], np.int64).T.copy()
        self._calls_at = self._calls.ctypes.data
        self._pace = Pace()

    def run(self, fewer: int = 0) -> None:
        """Make the calls, but so many at the end."""
        count = len(self.names) - fewer
        if torch.autograd._profiler_enabled():  # type: ignore[no-untyped-call]
            # torch's traces have torch's own operations only
            for i, name in enumerate(self.names[:count]):
                with torch.profiler.record_function(name):
                    _thread.run(self._calls_at + 24 * i, 1, self._work)
            return
        start, alone = time.perf_counter(), self._pace.alone
        _thread.run(self._calls_at, count, self._work, alone)
        self._pace.took(time.perf_counter() - start)
