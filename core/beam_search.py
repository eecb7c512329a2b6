"""Beam search: the likeliest whole answers to a prompt. What is kept of each round, without an engine.

The rules are those of transformers' `generate(num_beams=...)`: of the likeliest continuations of all beams, those that end
among the first `beam_width` are answers, scored by log probability / length ** length_penalty; of the others the first
`beam_width` go on. An engine is asked for one token of every beam at a time (core/engine/beams.py); each is a
request of its own, and the prefix cache has what stands before it. The step knows nothing of beams.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from core.errors import RequestError
from core.outputs import TokenLogprob
from core.sampling_params import MAX_LOGPROBS, SamplingParams

MAX_BEAMS = MAX_LOGPROBS // 2
"""Each beam is asked for twice as many continuations as there are beams: as many may end."""


class BeamSearchParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How answers are searched for, with vLLM's names."""

    beam_width: int
    """Answers that are followed at a time, 1 to MAX_BEAMS."""
    max_tokens: int | None = 16
    """Most new tokens; None: up to the model's length."""
    n: int | None = None
    """Answers to give; unset: all beams."""
    length_penalty: float = 1.0
    """Above 0 prefers longer answers, below 0 shorter ones; 0: log probabilities are not divided by anything."""
    early_stopping: bool | str = False
    """True: end with as many answers as beams. False: once the beams as long as they are now can better none; "never": once
    the longest that they may become can better none."""
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    """Log probabilities of this many likeliest tokens at each new position, and of the chosen one."""
    skip_special_tokens: bool = True
    truncate_prompt_tokens: int | None = None
    temperature: float = 0.0
    """Changes nothing, since nothing is drawn; there for scripts that set it."""
    include_stop_str_in_output: bool = False
    """Changes nothing: there are no stop strings. There for scripts that set it."""

    def __post_init__(self) -> None:
        width, n = self.beam_width, self.n
        if not isinstance(width, int) or not 1 <= width <= MAX_BEAMS:
            raise RequestError(
                f"beam_width={width!r} is not allowed; it must be from 1 to {MAX_BEAMS}", param="beam_width"
            )
        if n is not None and not 1 <= n <= width:
            raise RequestError(f"n={n} is not allowed; it must be from 1 to beam_width ({width})", param="n")
        if not -10 <= self.length_penalty <= 10:  # NaN fails too
            raise RequestError(
                f"length_penalty={self.length_penalty} is not allowed; it must be from -10 to 10",
                param="length_penalty",
            )
        if self.early_stopping not in (True, False, "never"):
            raise RequestError(
                f"early_stopping={self.early_stopping!r} is not allowed; it must be true, false or 'never'",
                param="early_stopping",
            )
        msgspec.structs.force_setattr(self, "stop_token_ids", tuple(self.stop_token_ids))
        names = ("max_tokens", "logprobs", "truncate_prompt_tokens", "temperature")
        SamplingParams(**{name: getattr(self, name) for name in names})  # they have the rules that they have there


@dataclass(slots=True)
class Beam:
    """One answer, ended or not."""

    token_ids: list[int] = field(default_factory=list)
    """New tokens, with the one that ended it."""
    cumulative_logprob: float = 0.0
    logprobs: list[list[TokenLogprob]] = field(default_factory=list)
    """Per new position: the chosen token first, then the likeliest ones."""
    finish_reason: str | None = None
    score: float = 0.0
    """Of an answer that has ended: what answers are ranked by."""


class BeamSearch:
    """The beams of one prompt. Ask for the next token of each of `running` and `take` the answers, until none runs."""

    def __init__(self, params: BeamSearchParams, ends: frozenset[int], most_tokens: int) -> None:
        """ends: token ids that end an answer; most_tokens: that it may have."""
        self._params, self._ends, self._most = params, ends, most_tokens
        self.num_candidates = min(max(2, 1 + len(ends)) * params.beam_width, MAX_LOGPROBS)
        """Continuations that are looked at in a round, and so of each beam."""
        self.running = [Beam()]
        self._ended: list[Beam] = []

    def take(self, candidates: Sequence[Sequence[TokenLogprob]]) -> None:
        """For each running beam its likeliest next tokens, one token once."""
        params = self._params
        width, length = params.beam_width, len(self.running[0].token_ids) + 1
        found = [
            (b.cumulative_logprob + c.logprob, b, c, of)
            for b, of in zip(self.running, candidates, strict=True)
            for c in of
        ]
        found.sort(key=lambda f: -f[0])
        self.running = []
        for place, (total, beam, token, others) in enumerate(found[: self.num_candidates]):
            reason = "stop" if token.token_id in self._ends else "length" if length == self._most else None
            kept = len(self.running) < width if reason is None else place < width
            if not kept:
                continue
            logprobs = beam.logprobs
            if params.logprobs is not None:
                logprobs = [*logprobs, [token, *sorted(others, key=lambda c: c.rank)[: params.logprobs]]]
            new = Beam([*beam.token_ids, token.token_id], total, logprobs, reason)
            if reason is None:
                self.running.append(new)
            else:
                new.score = total / length**params.length_penalty
                self._ended.append(new)
        self._ended = sorted(self._ended, key=lambda b: -b.score)[:width]
        if self.running and not self._may_improve(length):
            self.running = []

    def _may_improve(self, length: int) -> bool:
        params = self._params
        if len(self._ended) < params.beam_width:
            return True
        if params.early_stopping is True:
            return False
        longest = params.early_stopping == "never" and params.length_penalty > 0
        best = self.running[0].cumulative_logprob / (self._most if longest else length) ** params.length_penalty
        return best > self._ended[-1].score

    @property
    def answers(self) -> list[Beam]:
        """Once nothing runs: the best first."""
        return self._ended[: self._params.n or self._params.beam_width]
