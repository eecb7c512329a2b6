"""What the kernels of this package compute, in plain torch: their specification, and the path of other devices."""

from __future__ import annotations

import torch
from torch.nn import functional


def rms_norm_reference(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Source: arXiv:1910.07467. Rounded to x's type before the weight, as checkpoints were trained."""
    if x.dtype == torch.float32:
        return functional.rms_norm(x, weight.shape, weight, eps)
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return wide.to(x.dtype) * weight


def add_rms_norm_reference(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(x + residual) and its norm."""
    total = x + residual
    return rms_norm_reference(total, weight, eps), total


def silu_and_mul_reference(x: torch.Tensor) -> torch.Tensor:
    """[..., 2 n] -> [..., n]: silu of the first half times the second."""
    gate, up = x.chunk(2, -1)
    return functional.silu(gate) * up


def linear_reference(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x @ weight.T + bias."""
    return functional.linear(x, weight, bias)


def rope_and_cache_reference(
    qkv: torch.Tensor,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    num_heads: int,
    q_weight: torch.Tensor | None = None,
    k_weight: torch.Tensor | None = None,
    eps: float = 1e-6,
) -> torch.Tensor:
    """See core/kernels/rope.py: rotates (after an optional norm of each head) in place and writes keys and values."""
    num_kv_heads, dim = keys.shape[2], keys.shape[3]
    heads = qkv.view(qkv.shape[0], num_heads + 2 * num_kv_heads, dim)
    qk = heads[:, : num_heads + num_kv_heads].float()
    if q_weight is not None and k_weight is not None:
        qk = qk * torch.rsqrt(qk.square().mean(-1, keepdim=True) + eps)
        qk = qk.to(qkv.dtype).float()
        qk[:, :num_heads] *= q_weight.float()
        qk[:, num_heads:] *= k_weight.float()
    rotary = cos_sin.shape[-1]
    cos, sin = cos_sin[positions].float().unsqueeze(1).chunk(2, -1)
    first, second = qk[..., : rotary // 2], qk[..., rotary // 2 : rotary]
    rotated = torch.cat([first * cos - second * sin, second * cos + first * sin, qk[..., rotary:]], -1)
    heads[:, : num_heads + num_kv_heads] = rotated.to(qkv.dtype)
    kept = slots >= 0
    at = slots[kept]
    keys.view(-1, num_kv_heads, dim)[at] = heads[kept, num_heads : num_heads + num_kv_heads].to(keys.dtype)
    values.view(-1, num_kv_heads, dim)[at] = heads[kept, num_heads + num_kv_heads :].to(values.dtype)
    return qkv
