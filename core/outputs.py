"""What a caller gets back, with vLLM's names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np  # a type only: this module is light to import


@dataclass(slots=True)
class TokenLogprob:
    """One candidate at one position."""

    token_id: int
    logprob: float
    rank: int
    """1 is the likeliest."""
    decoded_token: str
    """Empty with detokenize=False, or without a tokenizer."""


@dataclass(slots=True)
class CompletionOutput:
    """One answer. In a delta stream, text, token_ids and logprobs hold only what is new."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    """stop, length, abort or error; None while it runs"""
    stop_reason: int | str | None = None
    """The stop string or stop token id that ended it; None for the model's own end"""
    cumulative_logprob: float | None = None
    logprobs: list[list[TokenLogprob]] | None = None
    """Per new position: the chosen token first, then the likeliest ones."""
    error: str | None = None


@dataclass(slots=True)
class EmbeddingOutput:
    """The vector of one prompt."""

    vector: np.ndarray
    """float32 [dimensions]"""

    @property
    def embedding(self) -> list[float]:
        """As a list of floats."""
        return self.vector.tolist()  # type: ignore[no-any-return]

    @property
    def data(self) -> np.ndarray:
        """vLLM's name for it, of `LLM.encode`."""
        return self.vector

    @property
    def hidden_size(self) -> int:
        """Numbers in the vector."""
        return len(self.vector)


@dataclass(slots=True)
class EmbeddingRequestOutput:
    """The vector of one prompt."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: EmbeddingOutput
    num_cached_tokens: int = 0
    finished: bool = True


@dataclass(slots=True)
class RequestMetrics:
    """Times are time.monotonic(), seconds."""

    arrival_time_s: float = 0.0
    first_scheduled_time_s: float = 0.0
    first_token_time_s: float = 0.0
    finish_time_s: float = 0.0
    num_preemptions: int = 0


@dataclass(slots=True)
class RequestOutput:
    """Everything of one prompt."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput] = field(default_factory=list)
    finished: bool = False
    num_cached_tokens: int = 0
    prompt_logprobs: list[list[TokenLogprob] | None] | None = None
    metrics: RequestMetrics = field(default_factory=RequestMetrics)
