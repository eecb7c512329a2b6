"""What every CPU kernel stands on: compiled once a machine and kept on disk, run by one thread or by several.

A kernel takes addresses and sizes, as a Triton kernel does: a torch tensor's `data_ptr()` costs a tenth of its
`numpy()`, and a decode step makes some hundred calls. Imported by the first tensor that a kernel is for, since it
imports numba (0.4 s).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FunctionType
from typing import Any

import numba
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

FASTMATH = {"reassoc", "contract", "nsz", "arcp"}
"""Sums may be reordered and multiplications fused, which vectors need; NaN and infinity stay what they are."""

SERIAL_WORK = 1 << 16
"""Below so many operations, some 5 us of one thread, a second one is not woken: that alone costs as much."""
Call = tuple[Callable[..., None], tuple[float, ...]]
"""A kernel's form and its arguments."""


@intrinsic
def _float32s(typing_context, address):  # type: ignore[no-untyped-def]
    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.inttoptr(arguments[0], ir.FloatType().as_pointer())

    return types.CPointer(types.float32)(address), generate


@intrinsic
def _int64s(typing_context, address):  # type: ignore[no-untyped-def]
    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())

    return types.CPointer(types.int64)(address), generate


@intrinsic
def _int32s(typing_context, address):  # type: ignore[no-untyped-def]
    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.inttoptr(arguments[0], ir.IntType(32).as_pointer())

    return types.CPointer(types.int32)(address), generate


class _Thread(threading.local):
    threads = 0
    """What numba was told last."""
    calls: list[Call] | None = None
    """Where calls are noted."""


_thread = _Thread()


def inlined(function: Callable[..., Any]) -> Any:
    """A part that kernels call."""
    return numba.njit(fastmath=FASTMATH)(function)


@inlined
def float32s(address, shape):  # type: ignore[no-untyped-def]
    """The contiguous float32 array that lies there."""
    return numba.carray(_float32s(address), shape)  # type: ignore[call-arg]


@inlined
def int64s(address, shape):  # type: ignore[no-untyped-def]
    """The contiguous int64 array that lies there."""
    return numba.carray(_int64s(address), shape)  # type: ignore[call-arg]


@inlined
def int32s(address, shape):  # type: ignore[no-untyped-def]
    """The contiguous int32 array that lies there."""
    return numba.carray(_int32s(address), shape)  # type: ignore[call-arg]


def _compile(function: Callable[..., Any], parallel: bool) -> Any:
    # numba finds what it kept by the name alone, so each form needs its own
    named = FunctionType(function.__code__, function.__globals__, function.__name__)
    named.__qualname__ = f"{function.__qualname__}_{'parallel' if parallel else 'serial'}"
    named.__module__ = function.__module__
    try:
        return numba.njit(fastmath=FASTMATH, parallel=parallel, nogil=True, cache=True)(named)
    except RuntimeError:
        # neither this folder nor the user's cache can be written: every process compiles for itself
        return numba.njit(fastmath=FASTMATH, parallel=parallel, nogil=True)(named)


def compile_kernels(progress: Callable[[int, int], None]) -> None:
    """All that were imported: from what is kept in some 30 ms each, anew in about a second.

    progress: is called with how many are done, and of how many.
    """
    for done, kernel in enumerate(_made):
        progress(done, len(_made))
        kernel.compile()


def use_threads() -> None:
    """Have parallel forms that this thread calls run in as many threads as torch has: numba keeps a number for each caller."""
    wanted = torch.get_num_threads()
    if _thread.threads != wanted:
        numba.set_num_threads(min(wanted, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
        _thread.threads = wanted


@contextlib.contextmanager
def recording() -> Iterator[list[Call]]:
    """Every kernel call that this thread makes: it is made, and noted."""
    calls: list[Call] = []
    _thread.calls = calls
    try:
        yield calls
    finally:
        _thread.calls = None


def replay(calls: Sequence[Call]) -> None:
    """Make the calls that were noted."""
    use_threads()
    if torch.autograd._profiler_enabled():  # type: ignore[no-untyped-call]
        for form, arguments in calls:
            traced(form, arguments)
        return
    for form, arguments in calls:
        form(*arguments)


def traced(form: Callable[..., None], arguments: tuple[float, ...]) -> None:
    """A call that torch's profiler sees: its traces have torch's own operations only."""
    with torch.profiler.record_function(form.__name__.strip("_")):
        form(*arguments)


class Kernel:
    """A function whose `numba.prange` runs in this thread or in torch.get_num_threads() of them.

    Each form is compiled when it is first called, or by `compile_kernels`.
    """

    def __init__(self, function: Callable[..., Any], *nothing: float) -> None:
        """nothing: arguments of the right types with which it does nothing."""
        self._nothing = nothing
        _made.append(self)
        self._serial = _compile(function, False)
        self._parallel = _compile(function, True)

    def __call__(self, work: int, *arguments: float) -> None:
        """work: operations, by which the form is chosen; several threads cost some 5 us more than one."""
        form = self._serial
        if work >= SERIAL_WORK and torch.get_num_threads() > 1:
            use_threads()
            form = self._parallel
        if _thread.calls is not None:
            _thread.calls.append((form, arguments))
            form(*arguments)  # not traced: what watches a step that is recorded would see the trace in it
        elif torch.autograd._profiler_enabled():  # type: ignore[no-untyped-call]
            traced(form, arguments)
        else:
            form(*arguments)

    def compile(self) -> None:
        """The forms that are of use with as many threads as torch has."""
        self._serial(*self._nothing)
        if torch.get_num_threads() > 1:
            self._parallel(*self._nothing)


_made: list[Kernel] = []
