"""Whether an attention backend can serve a model's layers, asked before weights are read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from core.errors import ConfigError
from core.interfaces.attention import AttentionBackend, AttentionSpec


def check_attention(
    backend: AttentionBackend,
    specs: Sequence[AttentionSpec],
    block_size: int,
    dtype: torch.dtype,
    cache_dtype: torch.dtype,
) -> None:
    """Raise ConfigError for the first thing that the backend's capabilities do not promise, with the way out.

    dtype: the model's; cache_dtype: what keys and values are stored as.
    """
    can = backend.capabilities
    if can.block_sizes is not None and block_size not in can.block_sizes:
        nearest = min(can.block_sizes, key=lambda size: abs(size - block_size))
        _refuse(
            backend, f"does not take block_size={block_size}, only {_list(can.block_sizes)}", f"--block-size {nearest}"
        )
    if not can.casts_cache and cache_dtype is not dtype and cache_dtype.itemsize > 1:
        stored, computed = (str(t).removeprefix("torch.") for t in (cache_dtype, dtype))
        _refuse(backend, f"stores no keys and values as {stored} for a model in {computed}", "--kv-cache-dtype auto")
    for spec in specs:
        if can.head_dims is not None and spec.head_dim not in can.head_dims:
            _refuse(backend, f"does not take heads of {spec.head_dim}, as this model has, only {_list(can.head_dims)}")
        if spec.window is not None and not can.window:
            _refuse(backend, f"knows no sliding window, and this model has one of {spec.window} tokens")
        if spec.soft_cap is not None and not can.soft_cap:
            _refuse(backend, f"knows no soft cap of its scores, and this model has one of {spec.soft_cap:g}")
        if spec.alibi_slopes is not None and not can.alibi:
            _refuse(backend, "takes no ALiBi slopes, and this model has them")


def _refuse(backend: AttentionBackend, what: str, way_out: str | None = None) -> None:
    choice = f"use {way_out}, or " if way_out else "use "
    raise ConfigError(f"attention backend {backend.name!r} {what}; {choice}another backend (--attention-backend auto)")


def _list(sizes: Iterable[int]) -> str:
    """1, 2 and 4; a long row by its ends and its step"""
    row = sorted(sizes)
    step = row[1] - row[0] if len(row) > 1 else 0
    if len(row) > 8 and row == list(range(row[0], row[-1] + 1, step)):
        return f"multiples of {step} from {row[0]} to {row[-1]}"
    return ", ".join(map(str, row))
