"""The operations that layers and runner share, each in Triton on a GPU, by Numba on a CPU, and in plain torch elsewhere.

A function here looks at its first tensor: on a GPU that Triton can compile for, or in float32 on a CPU where Numba is
installed, the kernel runs, else the reference. Either is imported when the first such tensor comes by.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Callable
from types import ModuleType

import numpy as np
import torch
from torch.nn import functional

from core.kernels.launch import is_fixed_order
from core.kernels.references import add_rms_norm_reference, rms_norm_reference, silu_and_mul_reference

log = logging.getLogger("backplane")

MANY_ROWS = 1024
"""From so many on the residual is added by the matrix product: the norm behind it then reads and writes half as much. H100, 16384
rows of 4096: the product takes 10 to 17 us longer, the norm some 90 less."""
MIN_CAPABILITY = (8, 0)
"""Ampere: what bf16 matrix instructions and asynchronous copies need."""


@functools.cache
def _gpu_ready(index: int) -> bool:
    if importlib.util.find_spec("triton") is None:
        return False
    return torch.version.hip is None and torch.cuda.get_device_capability(index) >= MIN_CAPABILITY


def on_gpu(x: torch.Tensor) -> bool:
    """May the Triton kernels be used for this tensor?"""
    return x.is_cuda and _gpu_ready(x.device.index)


@functools.cache
def _cpu_ready() -> bool:
    if importlib.util.find_spec("numba") is None:
        return False
    try:
        importlib.import_module("core.kernels.cpu.jit")
    except Exception as error:  # of numba: it may not fit this NumPy, or this Python
        log.warning("Numba is installed and cannot be imported, so no CPU kernels: %s: %s", type(error).__name__, error)
        return False
    return True


def on_cpu(x: torch.Tensor) -> bool:
    """May the CPU kernels be used for this tensor?"""
    return x.is_cpu and x.dtype is torch.float32 and _cpu_ready()


def has_kernels(x: torch.Tensor) -> bool:
    """Is there more for this tensor than plain torch?"""
    return on_gpu(x) or on_cpu(x)


@functools.cache
def _cpu(name: str) -> ModuleType:
    """A module of core/kernels/cpu. An import statement in a function costs a microsecond each time."""
    return importlib.import_module(f"core.kernels.cpu.{name}")


def compile_cpu_kernels(progress: Callable[[int, int], None]) -> None:
    """Where on_cpu() holds: compile what is not kept from an earlier start. progress: (done, of how many)"""
    for name in ("batch", "embedding", "linear", "rms_norm", "rope", "sampling"):
        _cpu(name)
    _cpu("jit").compile_kernels(progress)


def embedding(ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """int64 [tokens], [vocab_size, size] -> [tokens, size]"""
    if on_cpu(table):
        return _cpu("embedding").embedding(ids, table)  # type: ignore[no-any-return]
    return table.index_select(0, ids)


def greedy(logits: torch.Tensor, rows: np.ndarray, places: np.ndarray, token_ids: torch.Tensor) -> torch.Tensor:
    """Where on_cpu() holds: into token_ids[rows, places] the token with the highest logit.

    logits: [n, vocab]; rows, places: int32 [n] -> int32 [2, n]: the tokens, and 1 where the highest logit is finite
    """
    found = torch.empty((2, len(rows)), dtype=torch.int32)
    _cpu("sampling").greedy(logits, torch.from_numpy(rows), torch.from_numpy(places), token_ids, found)
    return found


def sample(
    logits: torch.Tensor,
    rows: np.ndarray,
    places: np.ndarray,
    token_ids: torch.Tensor,
    wishes: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    masks: tuple[np.ndarray, np.ndarray] | None,
) -> torch.Tensor:
    """As `greedy`, but by bitmask, temperature, min-p, top-k, top-p and a draw. The logits are written over.

    wishes: floats, top_k and seeds of all rows (core/sampling/rows.py); masks: which of the n have one, and its bits, as in
    core.batch.Bitmasks
    """
    found = torch.empty((2, len(rows)), dtype=torch.int32)
    bits = None
    if masks is not None:
        lines = np.full(len(rows), -1, np.int32)
        lines[masks[0]] = np.arange(len(masks[1]))
        bits = torch.from_numpy(lines), torch.from_numpy(np.ascontiguousarray(masks[1]))
    _cpu("sampling").sample(
        logits.contiguous(),
        torch.from_numpy(rows),
        torch.from_numpy(places),
        token_ids,
        found,
        *wishes,
        bits,
    )
    return found


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """[..., size] -> the same; the mean is taken in float32."""
    if on_gpu(x):
        from core.kernels import rms_norm as kernels

        return kernels.rms_norm(x, weight, eps)
    if on_cpu(x):
        return _cpu("rms_norm").rms_norm(x, weight, eps)  # type: ignore[no-any-return]
    return rms_norm_reference(x, weight, eps)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(norm(x + residual), x + residual). Where there is a kernel the sum is written over `residual`."""
    if on_gpu(x):
        from core.kernels import rms_norm as kernels

        return kernels.add_rms_norm(x, residual, weight, eps)
    if on_cpu(x):
        return _cpu("rms_norm").add_rms_norm(x, residual, weight, eps)  # type: ignore[no-any-return]
    return add_rms_norm_reference(x, residual, weight, eps)


def silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    """[..., 2 * size], gate then up -> silu(gate) * up, [..., size]"""
    if on_gpu(x):
        from core.kernels import activation

        return activation.silu_and_mul(x)
    return silu_and_mul_reference(x)


def _few_rows(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, silu: bool) -> torch.Tensor | None:
    """By a kernel that is bound by reading the weight alone; None: the library is as good."""
    from core.kernels import skinny_linear, wide_linear
    from core.kernels.linear_configs import WideConfig

    config = skinny_linear.choose_config(x, weight, silu)
    if config is None:
        return None
    if isinstance(config, WideConfig):
        return wide_linear.wide_linear(x, weight, bias, silu, config=config)
    return skinny_linear.skinny_linear(x, weight, bias, silu, config)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """[..., in] x [out, in] -> [..., out]"""
    if on_cpu(x):
        return _cpu("linear").linear(x, weight, bias)  # type: ignore[no-any-return]
    if is_fixed_order() and on_gpu(x):
        from core.kernels.fixed_linear import fixed_linear

        return fixed_linear(x, weight, bias)
    found = _few_rows(x, weight, bias, False) if on_gpu(x) else None
    return functional.linear(x, weight, bias) if found is None else found


def add_linear(x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor) -> bool:
    """residual += x W^T by the library, which adds while it multiplies; False: left undone, it would gain nothing.

    x: [tokens, in], weight: [out, in], residual: [tokens, out]
    """
    if len(x) < MANY_ROWS or is_fixed_order() or not on_gpu(x):
        return False
    residual.addmm_(x, weight.t())
    return True


def linear_silu_and_mul(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """silu(x Wg^T) * (x Wu^T) with weight = [Wg; Wu]; few rows: one kernel."""
    if on_cpu(x):
        return _cpu("linear").linear_silu_and_mul(x, weight)  # type: ignore[no-any-return]
    found = _few_rows(x, weight, None, True) if on_gpu(x) and not is_fixed_order() else None
    return silu_and_mul(linear(x, weight)) if found is None else found
