"""One sequence in the engine: what was asked, and where it stands. Imports no torch."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

import numpy as np

from core.sampling_params import SamplingParams


class RequestState(enum.Enum):
    """Where a sequence is in its life."""

    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "preempted"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Request:
    """One sequence. Parallel samples (n > 1) are one Request each; `parent` is the first of them.

    What changes every step lives in the scheduler's arrays at `row`, not here.
    """

    handle: int
    """The client's number for this sequence, unique in the engine."""
    request_id: str
    prompt_token_ids: np.ndarray
    """int32 [num_prompt_tokens]"""
    params: SamplingParams
    arrival_time_s: float
    """time.monotonic()"""
    max_total_tokens: int
    """Prompt and output together: min(prompt + max_tokens, max_model_len)."""
    stop_token_ids: frozenset[int] = frozenset()
    """Ids that end the output: the request's own and, unless ignore_eos, the model's."""
    eos_token_ids: frozenset[int] = frozenset()
    """The model's own among them (reported with stop_reason None)."""
    priority: int = 0
    seed: int = 0
    """Resolved: the request's own or one drawn by the client; 64 bits."""
    stream: bool = False
    """Report tokens of every step (else all of them at the end)."""
    cache_salt: str = ""
    parent: Request | None = None
    """The sample whose prompt blocks this one shares (n > 1)."""
    forked: bool = False

    state: RequestState = RequestState.WAITING
    row: int = -1
    """Row in the arrays of running requests; -1 while not running."""
    output_token_ids: list[int] = field(default_factory=list)
    """Filled when the request leaves its row (finished or preempted), not every step."""
    num_cached_tokens: int = 0
    """Prompt tokens that the prefix cache served at first admission."""
    num_prompt_logprobs: int = 0
    """Of the prompt's positions after its first, those whose log probabilities were sent."""
    num_preemptions: int = 0
    first_scheduled_time_s: float = 0.0
    first_token_time_s: float = 0.0
    finish_time_s: float = 0.0
    finish_reason: str | None = None
    """stop, length, abort or error"""
    stop_reason: int | str | None = None
    error: str | None = None
    guided: bool = False
    bad_words_ids: list[list[int]] = field(default_factory=list)
    pooling: str | None = None
    """The rule by which the prompt's hidden states become `embedding`; nothing is sampled. None: a generation."""
    embedding: np.ndarray | None = None
    """float32 [hidden]"""
    block_hashes: list[bytes] = field(default_factory=list)
    """Chained hashes of the full blocks so far (prefix cache)."""
