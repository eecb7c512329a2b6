"""What each running row asked of the sampler, as arrays; and the few rows that need more than arrays hold."""

from __future__ import annotations

import enum
from collections.abc import Sequence

import numpy as np
import torch

from core.batch import NewRow
from core.request import Request


class Needs(enum.IntFlag):
    """Stages that a row needs; a step runs a stage when any of its rows does."""

    NONE = 0
    RANDOM = 1
    FILTER = 2
    PENALTIES = 4
    LOGPROBS = 8
    EDITS = 16
    """logit_bias, allowed_token_ids, bad_words or min_tokens"""
    PROMPT_LOGPROBS = 32
    POOLING = 64
    POOLING_MEAN = 128
    STATES = PROMPT_LOGPROBS | POOLING
    """Hidden states, besides those that are sampled from."""
    ALL_STATES = PROMPT_LOGPROBS | POOLING_MEAN
    """Of all tokens, not of the last alone."""


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
        self.allowed: list[torch.Tensor | None] = [None] * num_rows
        """allowed_token_ids, on the device"""

    def enter(self, new_rows: Sequence[NewRow]) -> None:
        """Take in the wishes of requests that took rows, in one copy to the device."""
        numbers = np.array([[getattr(n.request.params, c) for c in self.COLUMNS] for n in new_rows], np.float64)
        integers = np.array(
            [(n.row, n.request.params.top_k, n.request.seed, len(n.request.prompt_token_ids)) for n in new_rows],
            np.int64,
        )
        packed = torch.from_numpy(np.concatenate([integers, numbers.view(np.int64)], 1))
        if self.device.type != "cpu":
            packed = packed.pin_memory().to(self.device, non_blocking=True)
        rows = packed[:, 0].contiguous()
        self.floats.index_copy_(0, rows, packed[:, 4:].contiguous().view(torch.float64).float())
        for target, column in ((self.top_k, 1), (self.seeds, 2), (self.prompt_lengths, 3)):
            target.index_copy_(0, rows, packed[:, column].contiguous())
        for new in new_rows:
            self._set_needs(new.row, new.request)

    def _set_needs(self, row: int, request: Request) -> None:
        p = request.params
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
        allowed = p.allowed_token_ids
        self.allowed[row] = torch.tensor(allowed, device=self.device) if allowed else None
        if p.logit_bias or allowed or request.bad_words_ids or p.min_tokens:
            needs |= Needs.EDITS
        if p.prompt_logprobs is not None:
            needs |= Needs.PROMPT_LOGPROBS
        if request.pooling is not None:
            needs = Needs.POOLING | (Needs.POOLING_MEAN if request.pooling == "mean" else Needs.NONE)
        self.needs[row] = int(needs)
