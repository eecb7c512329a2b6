"""Log probabilities of chosen and likeliest tokens, and their way to the host."""

from __future__ import annotations

import torch

from core.messages import Logprobs


def gather_logprobs(
    logits: torch.Tensor, chosen: torch.Tensor, num_top: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """logits: float32 [n, vocab], chosen: int64 [n] -> ids [n, 1 + num_top], log probabilities, rank of chosen [n]."""
    normalised = logits.log_softmax(-1)  # a row of it is the same among any others
    mine = normalised.gather(1, chosen[:, None])
    rank = (normalised > mine).sum(-1) + 1
    top, ids = normalised.topk(min(num_top, logits.shape[-1]), -1) if num_top else (mine[:, :0], chosen[:, None][:, :0])
    return torch.cat([chosen[:, None], ids], 1), torch.cat([mine, top], 1), rank


def to_message(ids: list[int], values: list[float], rank: int, num_top: int) -> Logprobs:
    """One row's gathered values as it crosses to the client: the chosen token first."""
    return Logprobs(ids[: 1 + num_top], values[: 1 + num_top], [rank, *range(1, min(num_top, len(ids) - 1) + 1)])
