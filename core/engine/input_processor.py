"""What a caller asks for -> AddRequest, or a RequestError that says what is wrong."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from core.beam_search import BeamSearchParams
from core.errors import RequestError
from core.messages import AddRequest, EngineReady
from core.sampling_params import MAX_INT, GuidedDecodingParams, SamplingParams
from core.text.tokenizer import Tokenizer

Prompt = str | Sequence[int] | dict[str, Any]
"""Text, token ids, {"prompt": text} or {"prompt_token_ids": ids}"""


class InputProcessor:
    """Prompts and wishes -> AddRequest, checked, with a handle of its own for every answer."""

    def __init__(
        self, ready: EngineReady, tokenizer: Tokenizer | None, default_seed: int, first_number: int = 0
    ) -> None:
        self.ready, self.tokenizer = ready, tokenizer
        self._handles = itertools.count(first_number + 1)
        self._ids = itertools.count()
        self._default_seed = default_seed

    def split(self, prompt: Prompt, add_special_tokens: bool = True) -> tuple[str | None, list[int]]:
        """(text, token ids) of a prompt."""
        if isinstance(prompt, dict):
            if "prompt_token_ids" in prompt:
                text = prompt.get("prompt")
                return (None if text is None else str(text)), self._checked(prompt["prompt_token_ids"])
            if "prompt" not in prompt:
                raise RequestError("a prompt given as a dict needs 'prompt' or 'prompt_token_ids'", param="prompt")
            prompt = str(prompt["prompt"])
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise RequestError(
                    "the engine has no tokenizer (skip_tokenizer_init), so the prompt must be token ids", param="prompt"
                )
            return prompt, self.tokenizer.encode(prompt, add_special_tokens)
        if not isinstance(prompt, Sequence):
            raise RequestError(f"a prompt is text or token ids, not {type(prompt).__name__}", param="prompt")
        return None, self._checked(prompt)  # type: ignore[arg-type]  # text was dealt with above

    def _checked(self, ids: Sequence[int]) -> list[int]:
        vocab = self.ready.vocab_size
        if set(map(type, ids)) == {int} and min(ids) >= 0 and max(ids) < vocab:
            return list(ids)
        for token in ids:
            if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < vocab:
                raise RequestError(f"token id {token!r} is not one of the model's (0 to {vocab - 1})", param="prompt")
        return list(ids)

    def shorten(self, prompt_ids: list[int], params: SamplingParams | BeamSearchParams) -> list[int]:
        """What `truncate_prompt_tokens` leaves of a prompt."""
        keep = params.truncate_prompt_tokens
        if keep == -1:
            keep = max(1, self.ready.max_model_len - (params.max_tokens or 1))
        return prompt_ids if keep is None else prompt_ids[-keep:]

    def make(
        self,
        prompt_ids: list[int],
        params: SamplingParams,
        request_id: str | None,
        *,
        priority: int,
        cache_salt: str,
        stream: bool,
    ) -> AddRequest:
        """Check against the model. The engine gets what it needs and nothing else."""
        length = self.ready.max_model_len
        if not self.ready.generates:
            raise RequestError(
                "the model has no head to generate with; it gives embeddings (embed, /v1/embeddings)", param="model"
            )
        if not prompt_ids:
            raise RequestError("the prompt is empty; give at least one token", param="prompt")
        if len(prompt_ids) >= length:
            raise RequestError(
                f"the prompt has {len(prompt_ids)} tokens, and the model takes {length} with at least one for the "
                "answer; shorten the prompt or raise max_model_len",
                param="prompt",
            )
        if params.guided_decoding is not None:
            self._check_guided(params.guided_decoding)
        _check_priority(priority)
        for name in ("stop_token_ids", "logit_bias", "allowed_token_ids"):
            bad = next((i for i in getattr(params, name) or () if not 0 <= i < self.ready.vocab_size), None)
            if bad is not None:
                raise RequestError(
                    f"token id {bad} is not one of the model's (0 to {self.ready.vocab_size - 1})", param=name
                )
        if params.stop and self.tokenizer is None:
            raise RequestError("stop strings need a tokenizer; use stop_token_ids", param="stop")
        count = params.num_sequences
        if count > params.n and params.logprobs is None:
            params = msgspec.structs.replace(params, logprobs=0)  # best_of ranks by them
        return AddRequest(
            handles=[next(self._handles) for _ in range(count)],
            request_id=request_id if request_id is not None else f"request-{next(self._ids)}",
            prompt=np.array(prompt_ids, np.int32).tobytes(),
            params=params,
            seeds=self._seeds(params, count),
            arrival_time_s=time.monotonic(),
            priority=priority,
            stream=stream,
            cache_salt=cache_salt,
            bad_words_ids=self._bad_words(params),
        )

    def _check_guided(self, constraint: GuidedDecodingParams) -> None:
        if self.tokenizer is None:
            raise RequestError(
                "guided decoding needs a tokenizer, and the engine has none (skip_tokenizer_init)",
                param="guided_decoding",
            )
        try:
            msgspec.msgpack.encode(constraint)
        except (OverflowError, RecursionError) as error:  # JSON has numbers of any size; messages have 64 bits
            raise RequestError(
                f"the guided-decoding constraint cannot be read: {error}", param="guided_decoding"
            ) from None

    def make_pooling(
        self, prompt_ids: list[int], pooling: str, request_id: str | None, *, priority: int, cache_salt: str
    ) -> AddRequest:
        """A request whose answer is one vector. The prompt may fill the model: nothing comes after it."""
        _check_priority(priority)
        length = self.ready.max_model_len
        if not prompt_ids:
            raise RequestError("the prompt is empty; give at least one token", param="prompt")
        if len(prompt_ids) > length:
            raise RequestError(
                f"the prompt has {len(prompt_ids)} tokens, and the model takes {length}; shorten it or raise max_model_len",
                param="prompt",
            )
        return AddRequest(
            handles=[next(self._handles)],
            request_id=request_id if request_id is not None else f"request-{next(self._ids)}",
            prompt=np.array(prompt_ids, np.int32).tobytes(),
            params=SamplingParams(max_tokens=None, temperature=0, detokenize=False),
            seeds=[0],
            arrival_time_s=time.monotonic(),
            priority=priority,
            cache_salt=cache_salt,
            pooling=pooling,
        )

    def _seeds(self, params: SamplingParams, count: int) -> list[int]:
        if params.seed is None:
            return np.frombuffer(os.urandom(8 * count), np.int64).tolist()
        # samples of one prompt differ; the first has the seed itself
        return [(params.seed + i * 0x5851F42D + 2**63) % 2**64 - 2**63 for i in range(count)]

    def _bad_words(self, params: SamplingParams) -> list[list[int]]:
        if not params.bad_words:
            return []
        if self.tokenizer is None:
            raise RequestError("bad_words need a tokenizer; use logit_bias", param="bad_words")
        # at the beginning of a text and inside one a word has different tokens
        spelled = [s for word in params.bad_words for s in (word.lstrip(), " " + word.lstrip())]
        ids = self.tokenizer.encode_batch(spelled, add_special_tokens=False)
        return [list(i) for i in dict.fromkeys(map(tuple, ids)) if i]


def _check_priority(priority: int) -> None:
    if abs(priority) > MAX_INT:
        raise RequestError(
            f"priority={priority} is not allowed; it must be from -{MAX_INT} to {MAX_INT}", param="priority"
        )
