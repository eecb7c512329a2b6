"""(Norm of each query and key head, then) rotary position embedding and the write into the KV cache, in one kernel.

Source: arXiv:2104.09864, the NeoX form (halves).
"""

from __future__ import annotations

import numpy as np
import torch

from core.kernels.cpu.jit import Kernel, float32s, inlined, int64s, numbers, part, real


@inlined
def _norm(head, weight, eps):  # type: ignore[no-untyped-def]
    squares = np.float32(0)
    for i in range(head.shape[0]):
        squares += head[i] * head[i]
    factor = np.float32(1) / np.sqrt(squares / np.float32(head.shape[0]) + np.float32(eps))
    for i in range(head.shape[0]):
        head[i] = head[i] * factor * weight[i]


@inlined
def _rotate(head, angles):  # type: ignore[no-untyped-def]
    half = angles.shape[0] // 2
    for i in range(half):
        first, second = head[i], head[half + i]
        head[i] = first * angles[i] - second * angles[half + i]
        head[half + i] = second * angles[i] + first * angles[half + i]


def _rope_and_cache(at, share, shares):  # type: ignore[no-untyped-def]
    (
        qkv_at, angles_at, positions_at, slots_at, keys_at, values_at, q_weight_at, k_weight_at,
        tokens, positions_in_table, rotary, slots_in_cache, heads, kv_heads, dim, norms, eps,
    ) = numbers(at, 17)  # fmt: skip
    qkv = float32s(qkv_at, (tokens, heads + 2 * kv_heads, dim))
    angles = float32s(angles_at, (positions_in_table, rotary))
    positions, slots = int64s(positions_at, (tokens,)), int64s(slots_at, (tokens,))
    keys, values = (
        float32s(keys_at, (slots_in_cache, kv_heads, dim)),
        float32s(values_at, (slots_in_cache, kv_heads, dim)),
    )
    q_weight, k_weight = float32s(q_weight_at, (dim,)), float32s(k_weight_at, (dim,))
    for token in part(tokens, share, shares):
        mine = angles[positions[token]]
        for h in range(heads + kv_heads):
            if norms:
                _norm(qkv[token, h], q_weight if h < heads else k_weight, real(eps))
            _rotate(qkv[token, h], mine)
        slot = slots[token]
        if slot >= 0:
            for h in range(kv_heads):
                for i in range(dim):
                    keys[slot, h, i] = qkv[token, heads + h, i]
                    values[slot, h, i] = qkv[token, heads + kv_heads + h, i]


_kernel = Kernel(_rope_and_cache, "16qd")


def rope_and_cache(
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
) -> None:
    """See core/kernels/rope.py: rotates qkv in place and writes keys and values. All contiguous; positions and slots int64."""
    blocks, block_size, num_kv_heads, dim = keys.shape
    norms = q_weight is not None and k_weight is not None
    weights = (q_weight.data_ptr(), k_weight.data_ptr()) if norms else (0, 0)  # type: ignore[union-attr]
    _kernel(
        8 * qkv.numel(),
        qkv.data_ptr(), cos_sin.data_ptr(), positions.data_ptr(), slots.data_ptr(), keys.data_ptr(), values.data_ptr(),
        *weights, qkv.shape[0], *cos_sin.shape, blocks * block_size, num_heads, num_kv_heads, dim, norms, eps,
    )  # fmt: skip
