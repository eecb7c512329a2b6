"""How one request wants its tokens chosen. Crosses processes as msgpack; checked when made."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from core.errors import RequestError

MAX_LOGPROBS = 20
MAX_N = 128
MAX_STOP = 64
MAX_LOGIT_BIAS = 1024
MIN_TEMPERATURE = 1e-5
"""Logits divided by less are beyond what numbers hold."""
MAX_INT = 2**31 - 1
"""Counts go to arrays of 32-bit integers."""


class GuidedDecodingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One constraint on the output's text. Exactly one of json, json_object, regex, choice, grammar,
    structural_tag is set."""

    json: str | dict[str, Any] | bool | None = None
    """A JSON schema, as an object or as text."""
    json_object: bool = False
    """Any JSON object."""
    regex: str | None = None
    choice: tuple[str, ...] | None = None
    grammar: str | None = None
    """A context-free grammar (Lark / EBNF)."""
    structural_tag: str | dict[str, Any] | None = None
    backend: str | None = None
    """Guided-decoding backend by name; unset: the engine's."""
    whitespace_pattern: str | None = None

    def __post_init__(self) -> None:
        given = [k for k in ("json", "regex", "choice", "grammar", "structural_tag") if getattr(self, k) is not None]
        given += ["json_object"] if self.json_object else []
        if len(given) != 1:
            raise RequestError(
                f"guided decoding takes exactly one constraint, not {given or 'none'}; "
                "give one of json, json_object, regex, choice, grammar, structural_tag",
                param="guided_decoding",
            )
        if self.whitespace_pattern is not None and self.json is None and not self.json_object:
            raise RequestError(
                f"whitespace_pattern has no effect with {given[0]}; it needs json or json_object",
                param="guided_whitespace_pattern",
            )
        if self.choice is not None and not self.choice:
            raise RequestError("choice is empty; list at least one string", param="guided_choice")


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How one request wants its tokens chosen, with OpenAI's and vLLM's names and meanings."""

    n: int = 1
    """Answers to one prompt; they share the prompt's KV blocks."""
    best_of: int | None = None
    """Answers to make, of which the `n` of highest mean log probability are returned."""
    temperature: float = 1.0
    """0, or less than 1e-5, takes the likeliest token."""
    top_p: float = 1.0
    top_k: int = 0
    """0 or -1: off."""
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    """The same seed gives the same tokens, whatever else is in the batch."""
    max_tokens: int | None = 16
    """Most new tokens; None: up to the model's length."""
    min_tokens: int = 0
    """No end before this many new tokens."""
    stop: tuple[str, ...] | str | None = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    logprobs: int | None = None
    """Log probabilities of this many likeliest tokens at each new position, and of the chosen one."""
    prompt_logprobs: int | None = None
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: tuple[int, ...] | None = None
    """No other token is chosen. Where none would be left, min_tokens and bad_words give way to it, and it to a grammar."""
    truncate_prompt_tokens: int | None = None
    """Keep so many tokens of the prompt, the last ones; -1: as many as leave room for max_tokens, or for one token."""
    bad_words: tuple[str, ...] = ()
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    detokenize: bool = True
    guided_decoding: GuidedDecodingParams | None = None
    structured_outputs: GuidedDecodingParams | None = None
    """The newer name of guided_decoding."""
    use_beam_search: bool = False

    def __post_init__(self) -> None:
        if self.structured_outputs is not None:
            self._check(self.guided_decoding is None, "structured_outputs", "unset: guided_decoding says the same")
            msgspec.structs.force_setattr(self, "guided_decoding", self.structured_outputs)
            msgspec.structs.force_setattr(self, "structured_outputs", None)
        stop = self.stop
        stop = (stop,) if isinstance(stop, str) else tuple(stop or ())
        msgspec.structs.force_setattr(self, "stop", stop)
        for name in ("stop_token_ids", "bad_words"):
            msgspec.structs.force_setattr(self, name, tuple(getattr(self, name) or ()))
        if self.allowed_token_ids is not None:
            msgspec.structs.force_setattr(self, "allowed_token_ids", tuple(self.allowed_token_ids))
            self._check(bool(self.allowed_token_ids), "allowed_token_ids", "at least one token id")
        if self.top_k == -1:
            msgspec.structs.force_setattr(self, "top_k", 0)
        self._check(isinstance(self.n, int) and 1 <= self.n <= MAX_N, "n", f"from 1 to {MAX_N}")
        if self.best_of is not None:
            self._check(self.n <= self.best_of <= MAX_N, "best_of", f"from n ({self.n}) to {MAX_N}")
        self._finite("temperature", 0, 100, "0 (the likeliest token) to 100")
        if self.temperature < MIN_TEMPERATURE:
            msgspec.structs.force_setattr(self, "temperature", 0.0)
        self._finite("top_p", 0, 1, "above 0 and at most 1")
        self._check(self.top_p > 0, "top_p", "above 0 and at most 1; for the likeliest token set temperature=0")
        self._check(
            isinstance(self.top_k, int) and 0 <= self.top_k <= MAX_INT, "top_k", f"0 (off) or positive, up to {MAX_INT}"
        )
        self._finite("min_p", 0, 1, "from 0 to 1")
        self._finite("presence_penalty", -2, 2, "from -2 to 2")
        self._finite("frequency_penalty", -2, 2, "from -2 to 2")
        self._finite("repetition_penalty", 0, 1000, "above 0")
        self._check(self.repetition_penalty > 0, "repetition_penalty", "above 0")
        self._check(self.max_tokens is None or self.max_tokens >= 1, "max_tokens", "at least 1")
        self._check(self.max_tokens is None or self.max_tokens <= MAX_INT, "max_tokens", f"at most {MAX_INT}")
        self._check(self.min_tokens >= 0, "min_tokens", "0 or positive")
        self._check(self.min_tokens <= MAX_INT, "min_tokens", f"at most {MAX_INT}")
        self._check(
            self.max_tokens is None or self.min_tokens <= self.max_tokens,
            "min_tokens",
            f"at most max_tokens ({self.max_tokens})",
        )
        self._check(len(stop) <= MAX_STOP, "stop", f"at most {MAX_STOP} strings")
        self._check(all(isinstance(s, str) and s for s in stop), "stop", "strings that are not empty")
        self._check(not stop or self.detokenize, "stop", "empty when detokenize is false")
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            self._check(value is None or 0 <= value <= MAX_LOGPROBS, name, f"from 0 to {MAX_LOGPROBS}")
        if self.seed is not None:
            self._check(-(2**63) <= self.seed < 2**63, "seed", "a 64-bit integer")
        if self.logit_bias is not None:
            self._check(len(self.logit_bias) <= MAX_LOGIT_BIAS, "logit_bias", f"at most {MAX_LOGIT_BIAS} tokens")
            self._check(
                all(not math.isnan(b) and abs(b) <= 100 for b in self.logit_bias.values()),
                "logit_bias",
                "biases from -100 to 100",
            )
        self._check(all(self.bad_words), "bad_words", "strings that are not empty")
        keep = self.truncate_prompt_tokens
        self._check(
            keep is None or keep == -1 or 1 <= keep <= MAX_INT,
            "truncate_prompt_tokens",
            f"-1 (what fits), or from 1 to {MAX_INT}",
        )
        self._check(
            not self.use_beam_search,
            "use_beam_search",
            "false: call beam_search, with BeamSearchParams(beam_width=...)",
        )

    def _check(self, ok: bool, name: str, allowed: str) -> None:
        if not ok:
            raise RequestError(f"{name}={getattr(self, name)!r} is not allowed; it must be {allowed}", param=name)

    def _finite(self, name: str, low: float, high: float, allowed: str) -> None:
        value = getattr(self, name)
        # NaN fails every comparison, so it is refused here too
        self._check(isinstance(value, int | float) and low <= value <= high, name, allowed)

    @property
    def num_sequences(self) -> int:
        """Sequences to run: best_of, or n."""
        return self.best_of or self.n

    @property
    def needs_penalties(self) -> bool:
        """Whether counts of tokens are to be kept for this request."""
        return bool(self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1)
