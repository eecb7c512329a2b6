"""How kernels are launched, or only compiled: is programmatic dependent launch (PDL) there, how many multiprocessors.

With PDL a kernel's blocks start while the kernel before still drains, and wait (gdc_wait) before they touch what it
wrote. Every kernel of ours launched so calls gdc_wait in every block, also in those with nothing to do: a kernel that
skipped it could end before its predecessor, and the one behind would read too early.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch


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

    def load(self, pool: ThreadPoolExecutor) -> None:
        """Build the launchers of all kernels (a C compiler each, when they are not on disk) and load their code."""

        def load(kernel: Any) -> None:
            compiled = kernel.result() if hasattr(kernel, "result") else kernel
            getattr(compiled, "_init_handles", lambda: None)()

        list(pool.map(load, self._kernels))


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


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **keywords: Any) -> None:
    """kernel[grid](*args, **keywords); within `compiling`, hand it to the compiler and compute nothing."""
    if _compilation is not None:
        _compilation.take(kernel, grid, args, keywords)
    else:
        kernel[grid](*args, **keywords)


@contextlib.contextmanager
def compiling() -> Iterator[None]:
    """Kernels launched in here are compiled, side by side, and ready when the block ends; their outputs are not."""
    global _compilation
    try:
        from triton.runtime._async_compile import AsyncCompileMode
    except ImportError:  # another Triton: the first launch compiles
        mode: Any = contextlib.nullcontext
    else:
        mode = AsyncCompileMode
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        _compilation = work = _Compilation()
        try:
            with mode(pool):
                yield
        finally:
            _compilation = None
        work.load(pool)
