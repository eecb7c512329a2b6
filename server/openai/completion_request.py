"""Bodies of /v1/completions -> what the engine is asked: one prompt or several, text or token ids."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from core.engine.news import Outlet
from core.engine.output_processor import OutputKind
from core.errors import RequestError
from core.outputs import CompletionOutput, RequestOutput
from core.sampling_params import SamplingParams
from server.errors import ApiError, invalid
from server.openai import params
from server.openai.generation import generate
from server.openai.logprobs import TextLogprobs, joined
from server.openai.schema import CompletionRequest
from server.state import ServerState

_DEFAULT_MAX_TOKENS = 16


@dataclass(slots=True)
class Prompt:
    token_ids: list[int]
    text: str | None
    """None: it came as token ids, or is part of what came"""

    def shown(self, state: ServerState) -> str:
        return self.text if self.text is not None else state.decode(self.token_ids)

    def shorten_to(self, token_ids: list[int]) -> None:
        """Its last tokens."""
        if len(token_ids) < len(self.token_ids):
            self.token_ids, self.text = token_ids, None


@dataclass(slots=True)
class Completion:
    """One request, understood."""

    body: CompletionRequest
    model: str
    id: str
    params: SamplingParams
    prompts: list[Prompt]
    echo_only: bool
    """max_tokens 0 with echo: the prompt and its log probabilities, nothing new"""
    created_s: int = field(default_factory=lambda: int(time.time()))

    def generate(
        self, state: ServerState, output_kind: OutputKind, number: int, outlet: Outlet | None = None
    ) -> AsyncGenerator[RequestOutput, None]:
        """Outputs for prompt `number`."""
        id = self.id if len(self.prompts) == 1 else f"{self.id}-{number}"
        return generate(state, self.body, id, self.prompts[number].token_ids, self.params, output_kind, outlet)

    def logprobs(
        self,
        state: ServerState,
        prompt: Prompt,
        shape: TextLogprobs,
        new: CompletionOutput,
        output: RequestOutput,
        *,
        with_prompt: bool,
    ) -> dict[str, Any] | None:
        """Of what is new, and before that of the prompt if asked for."""
        if self.body.logprobs is None:
            return None
        parts = []
        if with_prompt and output.prompt_logprobs is not None:
            first = prompt.token_ids[0]
            parts += [shape.first(state.decode([first]), first), shape.take(output.prompt_logprobs[1:])]
        if not self.echo_only:
            parts.append(shape.take(new.logprobs or ()))
        return joined(parts)


async def understand(state: ServerState, body: CompletionRequest, id: str) -> Completion:
    model = state.check_model(body.model)
    params.refuse_completion(body)
    vocab_size = state.engine.ready.vocab_size
    given = _split(body.prompt)
    if len(given) > state.options.max_prompts:
        raise invalid("prompt", f"{len(given)} prompts are more than max_prompts={state.options.max_prompts}")
    prompts = await _prompts(state, body, given, vocab_size)
    echo_only = bool(body.echo) and body.max_tokens == 0
    max_tokens = _DEFAULT_MAX_TOKENS if body.max_tokens is None else 1 if echo_only else body.max_tokens
    if body.echo and body.logprobs is not None and body.prompt_logprobs is None:
        body.prompt_logprobs = body.logprobs
    sampling = params.sampling_params(
        body,
        defaults=state.defaults,
        vocab_size=vocab_size,
        max_n=state.options.max_n,
        max_tokens=max_tokens,
        logprobs=body.logprobs,
        constraint=params.guided(body),
    )
    for prompt in prompts:
        prompt.shorten_to(state.engine.inputs.shorten(prompt.token_ids, sampling))
    return Completion(body=body, model=model, id=id, params=sampling, prompts=prompts, echo_only=echo_only)


def _split(prompt: Any) -> list[tuple[Any, str]]:
    """The prompts of a body, each with its place."""
    if isinstance(prompt, str):
        return [(prompt, "prompt")]
    kinds = {type(p) for p in prompt}
    if not prompt:
        raise invalid("prompt", "prompt is empty")
    if len(kinds) > 1:
        raise ApiError("prompt mixes text and token ids; send one kind", param="prompt", code="invalid_type")
    if kinds == {int}:
        return [(prompt, "prompt")]
    return [(p, f"prompt[{i}]") for i, p in enumerate(prompt)]


async def _prompts(
    state: ServerState, body: CompletionRequest, given: list[tuple[Any, str]], vocab_size: int
) -> list[Prompt]:
    """All are text, or all are token ids."""
    texts = [p for p, _ in given if isinstance(p, str)]
    special = body.add_special_tokens is not False
    tokenize = state.encode_prompts if body.truncate_prompt_tokens is None else state.encode_all
    found = await tokenize(texts, add_special_tokens=special) if texts else [p for p, _ in given]
    for token_ids, (_, at) in zip(found, given, strict=True):
        if not token_ids:
            raise invalid(at, f"{at} is empty")
        if min(token_ids) < 0 or max(token_ids) >= vocab_size:
            i, token_id = next((i, t) for i, t in enumerate(token_ids) if not 0 <= t < vocab_size)
            raise invalid(at, f"{at}[{i}]={token_id} is not a token id; they go from 0 to {vocab_size - 1}")
    return [Prompt(ids, p if isinstance(p, str) else None) for ids, (p, _) in zip(found, given, strict=True)]


def place(error: BaseException) -> None:
    """Name the prompt, for the engine's errors that do not."""
    if isinstance(error, RequestError) and error.param in (None, "prompt_token_ids"):
        error.param = "prompt"
