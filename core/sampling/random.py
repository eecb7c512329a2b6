"""Counter-based random numbers: one uniform per (seed, position), the same whatever else is in the batch.

The mixing function is splitmix64's finalizer (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
"""

from __future__ import annotations

import torch


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


_GAMMA = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def _shift(value: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift of int64."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _mix(value: torch.Tensor) -> torch.Tensor:
    value = (value ^ _shift(value, 30)) * _MIX_1
    value = (value ^ _shift(value, 27)) * _MIX_2
    return value ^ _shift(value, 31)


def uniform(seeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """int64 [n], int64 [n] -> float64 [n] in [0, 1)"""
    mixed = _mix(_mix(seeds) + (positions + 1) * _GAMMA)
    return _shift(mixed, 11).double() * 2.0**-53
