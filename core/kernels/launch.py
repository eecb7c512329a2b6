"""How kernels are launched, or only compiled: is programmatic dependent launch (PDL) there, how many multiprocessors.

With PDL a kernel's blocks start while the kernel before still drains, and wait (gdc_wait) before they touch what it
wrote. Every kernel of ours launched so calls gdc_wait in every block, also in those with nothing to do: a kernel that
skipped it could end before its predecessor, and the one behind would read too early. Before the wait a kernel may read
weights, and what the step's preparation wrote (positions, slots, lengths, block tables): the lookup of the embeddings,
launched plainly, ends before any of them starts.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from core.kernels.compilers import Compilers


@functools.cache
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


@functools.cache
def _multiprocessors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def has_pdl(x: torch.Tensor) -> bool:
    """Hopper and newer."""
    return x.is_cuda and _capability(x.device.index) >= (9, 0)


def has_tma(x: torch.Tensor) -> bool:
    """Loads through tensor descriptors: Hopper and newer."""
    return x.is_cuda and _capability(x.device.index) >= (9, 0)


def num_multiprocessors(x: torch.Tensor) -> int:
    """Of the tensor's device; a small number where there is none (Triton's interpreter)."""
    return _multiprocessors(x.device.index) if x.is_cuda else 4


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up. (Triton's own, which kernels may call too, takes 2 us of the host.)"""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The least power of two that is at least n; n > 0."""
    return 1 << (n - 1).bit_length()


def options(pdl: bool, **more: Any) -> dict[str, Any]:
    """Keywords of a launch. launch_pdl is named only where it is on: the interpreter does not know it."""
    return {**more, "launch_pdl": True} if pdl else more


class _Compilation:
    """What one `compiling` block has handed to the compiler."""

    def __init__(self) -> None:
        self._seen: set[Any] = set()
        self._kernels: list[Any] = []

    def take(self, kernel: Any, grid: tuple[int, ...], args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        """A launch like an earlier one is left out: Triton would look at each argument again, and most are alike."""
        key = (kernel, tuple(map(_likeness, args)), tuple(keywords.items()))
        if key not in self._seen:
            self._seen.add(key)
            self._kernels.append(kernel.warmup(*args, grid=grid, **keywords))

    def load(self) -> None:
        """What the pool has not loaded already."""
        for kernel in self._kernels:
            _loaded(kernel.result() if hasattr(kernel, "result") else kernel)


def _loaded(kernel: Any) -> Any:
    """With its launcher built (by a C compiler, when it is not on disk) and its code on the device."""
    getattr(kernel, "_init_handles", lambda: None)()
    return kernel


class _CompileAndLoad(ThreadPoolExecutor):
    """What Triton submits to it compiles a kernel."""

    def __init__(self, compilers: Compilers | None) -> None:
        cores = os.cpu_count() or 1
        # threads that wait for another process take no core
        super().__init__(min(16, cores) if compilers is None else 4 * cores)
        self._compilers = compilers

    def submit(self, compile_kernel: Any, /, *args: Any, **keywords: Any) -> Future[Any]:
        return super().submit(self._compile, compile_kernel)

    def _compile(self, compile_kernel: Callable[[], Any]) -> Any:
        if self._compilers is not None:
            self._compilers.compile(compile_kernel)
        return _loaded(compile_kernel())  # what is compiled is read from Triton's cache


def _likeness(value: Any) -> Any:
    """What Triton's choice of a compiled kernel can depend on, or more."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.data_ptr() % 16 == 0
    if isinstance(value, int):
        return value == 1, value % 16 == 0, value.bit_length() > 31
    if isinstance(value, float) or value is None:
        return type(value)
    return type(value), value.base.dtype, tuple(value.block_shape)  # a tensor descriptor


_compilation: _Compilation | None = None
_fixed_order = False


def is_fixed_order() -> bool:
    """Must kernels give a row the same bits whatever other rows there are? Whoever chooses among kernels asks."""
    return _fixed_order


@contextlib.contextmanager
def fixed_order(wanted: bool) -> Iterator[None]:
    """What is launched in this block adds in one order, or not. (Everything is launched from one thread.)"""
    global _fixed_order
    before, _fixed_order = _fixed_order, wanted
    try:
        yield
    finally:
        _fixed_order = before


class _Ready:
    """A compiled kernel with what it was compiled for: launches like the last one need not be looked at again.

    Triton binds, types and hashes every argument of every launch, 15 us of an H100's host for 8 of them. The layers of a
    model differ in addresses alone: here those are checked, and the rest compared with the last launch's.
    Launch hooks of Triton's (a profiler's) see such launches no more.
    """

    __slots__ = (
        "_constants",
        "_descriptors",
        "_function",
        "_likeness",
        "_metadata",
        "_pick",
        "_run",
        "_scalars",
        "_tensors",
    )

    def __init__(self, compiled: Any, args: tuple[Any, ...], constants: list[Any]) -> None:
        self._run, self._function, self._metadata = compiled.run, compiled.function, compiled.packed_metadata
        self._constants = constants
        self._tensors = [
            (i, a.dtype, a.data_ptr() & 15 == 0) for i, a in enumerate(args) if isinstance(a, torch.Tensor)
        ]
        # a descriptor compares its tensor element by element: never as a scalar
        self._descriptors = [(i, _likeness(a)) for i, a in enumerate(args) if hasattr(a, "block_shape")]
        others = [i for i, a in enumerate(args) if isinstance(a, int | float)]
        # two at least, or it gives no tuple
        self._pick = operator.itemgetter(*others, *others[:1]) if others else lambda _: ()
        self._scalars = self._pick(args)
        self._likeness = tuple(map(_likeness, self._scalars))

    def launch(self, device: int, grid: tuple[int, ...], args: tuple[Any, ...]) -> bool:
        """False: it was compiled for other arguments."""
        values = list(args)
        for i, dtype, aligned in self._tensors:
            tensor = values[i]
            address = tensor.data_ptr()
            if tensor.dtype is not dtype or (address & 15 == 0) is not aligned:
                return False
            values[i] = address
        for i, likeness in self._descriptors:
            if _likeness(values[i]) != likeness:
                return False
        scalars = self._pick(args)
        if scalars != self._scalars:
            if tuple(map(_likeness, scalars)) != self._likeness:
                return False
            self._scalars = scalars
        y, z = grid[1] if len(grid) > 1 else 1, grid[2] if len(grid) > 2 else 1
        stream = torch._C._cuda_getCurrentRawStream(device)
        self._run(grid[0], y, z, stream, self._function, self._metadata, None, None, None, *values, *self._constants)
        return True


_ready: dict[tuple[Any, ...], _Ready] = {}


@functools.cache
def _knows_triton() -> bool:
    """The order of arguments to a compiled kernel's `run` is Triton's own affair; it was read in these versions."""
    import triton

    return tuple(map(int, triton.__version__.split(".")[:2])) in ((3, 6), (3, 9))


@functools.cache
def _constant_names(kernel: Any, count: int) -> list[str] | None:
    """The parameters behind the first `count`, if they and no others are compile-time constants."""
    params = getattr(kernel, "params", None)  # the interpreter's kernels have none
    if params is None or any(p.is_constexpr is (i < count) for i, p in enumerate(params)):
        return None
    return [p.name for p in params[count:]]


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **keywords: Any) -> None:
    """kernel[grid](*args, **keywords); within `compiling`, hand it to the compiler and compute nothing.

    args: all that is not a compile-time constant, in the kernel's order; the constants and options are keywords.
    """
    if _compilation is not None:
        _compilation.take(kernel, grid, args, keywords)
        return
    if not hasattr(kernel, "device_caches"):  # the interpreter's
        kernel[grid](*args, **keywords)
        return
    device = torch._C._cuda_getDevice()
    key = (id(kernel), device, *keywords, *keywords.values())
    ready = _ready.get(key)
    if ready is not None and ready.launch(device, grid, args):
        return
    compiled = kernel[grid](*args, **keywords)
    names = _constant_names(kernel, len(args)) if _knows_triton() else None
    known = all(isinstance(a, torch.Tensor | int | float) or hasattr(a, "block_shape") for a in args)
    if known and names is not None and all(n in keywords for n in names) and hasattr(compiled, "packed_metadata"):
        _ready[key] = _Ready(compiled, args, [keywords[n] for n in names])


@contextlib.contextmanager
def compiling(compilers: Compilers | None = None) -> Iterator[None]:
    """Kernels launched in here are compiled, side by side, and ready when the block ends; their outputs are not.

    compilers: other processes that do so; what they do not is compiled by threads of this one
    """
    global _compilation
    try:
        from triton.runtime._async_compile import AsyncCompileMode
    except ImportError:  # another Triton: the first launch compiles
        mode: Any = contextlib.nullcontext
    else:
        mode = AsyncCompileMode
    with _CompileAndLoad(compilers) as pool:
        _compilation = work = _Compilation()
        try:
            with mode(pool):
                yield
        finally:
            _compilation = None
        work.load()
