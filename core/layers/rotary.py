"""Rotary position embedding with its scalings. Source: arXiv:2104.09864; llama3 scaling: Llama 3.1's release; yarn:
arXiv:2309.00071."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from core.errors import ModelError


def rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """One dictionary of the two spellings: `rope_parameters`, or `rope_theta` with `rope_scaling`."""
    parameters = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    parameters.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    parameters.setdefault("rope_type", parameters.pop("type", "default"))
    return parameters


def inverse_frequencies(rope: Mapping[str, Any], dim: int, max_positions: int) -> tuple[torch.Tensor, float]:
    """float32 [dim / 2] and the factor on cos and sin."""
    base = float(rope["rope_theta"])
    inverse = 1.0 / base ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    kind = rope["rope_type"]
    if kind in ("default", "mrope"):
        return inverse, 1.0
    factor = float(rope.get("factor", 1.0))
    if kind == "linear":
        return inverse / factor, 1.0
    original = float(rope.get("original_max_position_embeddings", max_positions))
    if kind == "llama3":
        low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
        wavelength = 2 * math.pi / inverse
        smooth = ((original / wavelength - low) / (high - low)).clamp(0, 1)
        return (1 - smooth) * inverse / factor + smooth * inverse, 1.0
    if kind == "yarn":
        fast, slow = float(rope.get("beta_fast") or 32), float(rope.get("beta_slow") or 1)

        def dimension(rotations: float) -> float:
            return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(base))

        low, high = max(math.floor(dimension(fast)), 0), min(math.ceil(dimension(slow)), dim - 1)
        ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)).clamp(0, 1)
        scale = rope.get("attention_factor") or (0.1 * math.log(factor) + 1 if factor > 1 else 1.0)
        return inverse / factor * ramp + inverse * (1 - ramp), float(scale)
    raise ModelError(f"rope_type {kind!r} is not supported (default, linear, llama3, yarn)")


class Rotary:
    """Tables of cos and sin, and the rotation of halves (NeoX style)."""

    def __init__(self, config: Mapping[str, Any], head_dim: int, max_positions: int, device: torch.device) -> None:
        inverse, scale = inverse_frequencies(
            rope_parameters(config), head_dim, int(config.get("max_position_embeddings", max_positions))
        )
        angles = torch.arange(max_positions, dtype=torch.float32)[:, None] * inverse
        self.cos_sin = (torch.cat([angles.cos(), angles.sin()], -1) * scale).to(device)
        """float32 [max_positions, head_dim]: cos, then sin"""

    def at(self, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """What `rotate` needs at a step's positions, once for all layers: [num_tokens, 1, head_dim] each."""
        cos, sin = self.cos_sin.index_select(0, positions).to(dtype).unsqueeze(1).chunk(2, -1)
        return torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x: [num_tokens, num_heads, head_dim] -> the same, rotated."""
    # the roll swaps the halves; the sign is in sin
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)
