"""Repetition, presence and frequency penalties, from the tokens themselves: nothing is kept between steps."""

from __future__ import annotations

import torch


def apply_penalties(
    logits: torch.Tensor,
    token_ids: torch.Tensor,
    lengths: torch.Tensor,
    prompt_lengths: torch.Tensor,
    repetition: torch.Tensor,
    presence: torch.Tensor,
    frequency: torch.Tensor,
) -> torch.Tensor:
    """logits: float32 [n, vocab]; token_ids: int [n, longest], of which lengths count -> float32 [n, vocab].

    Repetition counts prompt and output (arXiv:1909.05858), the other two the output alone, as OpenAI's API does.
    """
    at = torch.arange(token_ids.shape[1], device=logits.device)
    known = at < lengths[:, None]
    generated = known & (at >= prompt_lengths[:, None])
    ids = token_ids.long()
    counts = torch.zeros_like(logits).scatter_add_(1, ids, generated.to(logits.dtype))
    seen = torch.zeros_like(logits).scatter_add_(1, ids, known.to(logits.dtype)) > 0
    factor = repetition[:, None]
    logits = torch.where(seen, torch.where(logits > 0, logits / factor, logits * factor), logits)
    return logits - frequency[:, None] * counts - presence[:, None] * (counts > 0)
