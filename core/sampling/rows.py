"""What each running row asked of the sampler, as arrays; and the few rows that need more than arrays hold."""

from __future__ import annotations

import enum

import numpy as np
import torch

from core.request import Request


class Needs(enum.IntFlag):
    """Stages that a row needs; a step runs a stage when any of its rows does."""

    NONE = 0
    RANDOM = 1
    FILTER = 2
    PENALTIES = 4
    LOGPROBS = 8
    EDITS = 16
    """logit_bias, bad_words or min_tokens"""
    PROMPT_LOGPROBS = 32


class SamplingRows:
    """Parameters by row: numbers on the device, needs on the host."""

    COLUMNS = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")

    def __init__(self, num_rows: int, device: torch.device) -> None:
        self.device = device
        self.floats = torch.zeros(num_rows, len(self.COLUMNS), device=device)
        self.top_k = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self.seeds = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self.prompt_lengths = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self.needs = np.zeros(num_rows, np.int32)
        self.requests: list[Request | None] = [None] * num_rows

    def set(self, row: int, request: Request) -> None:
        p = request.params
        self.floats[row] = torch.tensor([getattr(p, c) for c in self.COLUMNS])
        self.top_k[row] = p.top_k
        self.seeds[row] = request.seed
        self.prompt_lengths[row] = len(request.prompt_token_ids)
        self.requests[row] = request
        needs = Needs.NONE
        if p.temperature > 0:
            needs |= Needs.RANDOM
            if p.top_k > 0 or p.top_p < 1 or p.min_p > 0:
                needs |= Needs.FILTER
        if p.needs_penalties:
            needs |= Needs.PENALTIES
        if p.logprobs is not None:
            needs |= Needs.LOGPROBS
        if p.logit_bias or request.bad_words_ids or p.min_tokens:
            needs |= Needs.EDITS
        if p.prompt_logprobs is not None:
            needs |= Needs.PROMPT_LOGPROBS
        self.needs[row] = int(needs)
