"""Top-k, top-p and min-p on a batch of probabilities, without sorting the vocabulary.

Each finds the smallest probability that stays, by bisection on the bits of float32 (which order as the numbers do),
so the result is exact; equal probabilities stay or go together.
"""

from __future__ import annotations

import torch

_ONE_BITS = 0x3F800000
"""The bits of 1.0f, the largest probability."""


def top_p_threshold(probs: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Largest t such that the tokens with probability >= t hold at least top_p of the mass.

    probs: float32 [n, vocab], not negative, any sum; top_p: [n] -> float32 [n]
    """
    bits = probs.view(torch.int32)
    wanted = (probs.sum(-1, dtype=torch.float64) * top_p).unsqueeze(-1)
    low = torch.zeros(probs.shape[0], 1, dtype=torch.int32, device=probs.device)  # holds enough, always
    high = torch.full_like(low, _ONE_BITS + 1)  # holds too little, always
    for _ in range(30):
        middle = low + (high - low) // 2
        mass = torch.where(bits >= middle, probs, 0).sum(-1, keepdim=True, dtype=torch.float64)
        enough = mass >= wanted
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    return low.view(torch.float32).squeeze(-1)


def top_k_threshold(probs: torch.Tensor, top_k: torch.Tensor) -> torch.Tensor:
    """The top_k-th largest probability. top_k: int [n], 0 for off -> float32 [n]"""
    bits = probs.view(torch.int32)
    off = (top_k <= 0) | (top_k >= probs.shape[-1])
    wanted = torch.where(off, probs.shape[-1], top_k).unsqueeze(-1)
    low = torch.zeros(probs.shape[0], 1, dtype=torch.int32, device=probs.device)
    high = torch.full_like(low, _ONE_BITS + 1)
    for _ in range(31):
        middle = low + (high - low) // 2
        enough = (bits >= middle).sum(-1, keepdim=True) >= wanted
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    return low.view(torch.float32).squeeze(-1)


def keep(probs: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """Zero whatever is below its row's threshold."""
    return torch.where(probs >= threshold.unsqueeze(-1), probs, 0)
