"""POST /v1/completions: text, token ids, or a list of either."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

import msgspec
from litestar import Response, post

from core.engine.output_processor import OutputKind
from core.errors import RequestAbortedError, RequestError
from core.outputs import CompletionOutput, RequestOutput
from core.sampling_params import SamplingParams
from server.errors import ApiError, encode, invalid
from server.openai import logprobs as logprob_shapes
from server.openai import params
from server.openai.answers import TextCompletion
from server.openai.chat import check_end
from server.openai.schema import CompletionRequest
from server.openai.usage import usage
from server.openapi import operation
from server.state import HttpRequest, ServerState, merge, read_body, request_id, unless_gone
from server.streaming import DONE, DirectOutlet, error_event, start

_decoder = msgspec.json.Decoder(CompletionRequest)
_DEFAULT_MAX_TOKENS = 16
_NOTHING_ELSE = b',"logprobs":null,"finish_reason":null,"stop_reason":null}'
"""What follows the text of an event that holds new text alone."""


@dataclass(slots=True)
class Prompt:
    token_ids: list[int]
    text: str | None
    """None: it came as token ids"""


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
    found = await state.encode_prompts(texts, add_special_tokens=special) if texts else [p for p, _ in given]
    for token_ids, (_, at) in zip(found, given, strict=True):
        if not token_ids:
            raise invalid(at, f"{at} is empty")
        if min(token_ids) < 0 or max(token_ids) >= vocab_size:
            i, token_id = next((i, t) for i, t in enumerate(token_ids) if not 0 <= t < vocab_size)
            raise invalid(at, f"{at}[{i}]={token_id} is not a token id; they go from 0 to {vocab_size - 1}")
    return [Prompt(ids, p if isinstance(p, str) else None) for ids, (p, _) in zip(found, given, strict=True)]


def _sources(
    state: ServerState, c: Completion, output_kind: OutputKind, outlet: DirectOutlet | None = None
) -> list[AsyncGenerator[RequestOutput, None]]:
    body = c.body
    sources: list[Any] = []
    for i, prompt in enumerate(c.prompts):
        id = c.id if len(c.prompts) == 1 else f"{c.id}-{i}"
        sources.append(
            state.engine.generate(
                prompt.token_ids,
                c.params,
                state.engine_id(id),
                priority=body.priority or 0,
                cache_salt=body.cache_salt or "",
                output_kind=output_kind,
                outlet=outlet,
            )
        )
    return sources


def _echoed(state: ServerState, prompt: Prompt) -> str:
    return prompt.text if prompt.text is not None else state.decode(prompt.token_ids)


def _logprobs(
    state: ServerState,
    c: Completion,
    prompt: Prompt,
    shape: logprob_shapes.TextLogprobs,
    output: CompletionOutput,
    final: RequestOutput,
    *,
    with_prompt: bool,
    with_new: bool = True,
) -> dict[str, Any] | None:
    if c.body.logprobs is None:
        return None
    parts = []
    if with_prompt and final.prompt_logprobs is not None:
        first = prompt.token_ids[0]
        parts += [shape.first(state.decode([first]), first), shape.take(final.prompt_logprobs[1:])]
    if with_new:
        parts.append(shape.take(output.logprobs or ()))
    return logprob_shapes.joined(parts)


async def complete(state: ServerState, c: Completion) -> dict[str, Any]:
    body = c.body
    finals: dict[int, RequestOutput] = {}
    with state.working():
        merged = merge(_sources(state, c, "final"))
        try:
            async for number, output in merged:
                finals[number] = output
        except RequestError as error:
            raise _placed(error) from None
        finally:
            await merged.aclose()  # type: ignore[attr-defined]
    choices: list[dict[str, Any]] = []
    num_prompt = num_output = num_cached = 0
    for number, prompt in enumerate(c.prompts):
        final = finals.get(number)
        if final is None:
            raise RequestAbortedError("the engine gave no answer")
        num_prompt += len(prompt.token_ids)
        num_cached += final.num_cached_tokens
        for answer in final.outputs:
            check_end(answer, c.params)
            new_text = "" if c.echo_only else answer.text
            num_output += 0 if c.echo_only else len(answer.token_ids)
            shape = logprob_shapes.TextLogprobs(body.logprobs or 0, as_ids=bool(body.return_tokens_as_token_ids))
            choice: dict[str, Any] = {
                "index": len(choices),
                "text": (_echoed(state, prompt) if body.echo else "") + new_text,
                "logprobs": _logprobs(
                    state, c, prompt, shape, answer, final, with_prompt=bool(body.echo), with_new=not c.echo_only
                ),
                "finish_reason": "length" if c.echo_only else answer.finish_reason,
                "stop_reason": answer.stop_reason,
            }
            if body.prompt_logprobs is not None:
                choice["prompt_logprobs"] = logprob_shapes.prompt(final.prompt_logprobs)
            if body.return_token_ids:
                choice |= {"prompt_token_ids": prompt.token_ids, "token_ids": answer.token_ids}
            choices.append(choice)
    return {
        "id": c.id,
        "object": "text_completion",
        "created": c.created_s,
        "model": c.model,
        "choices": choices,
        "usage": usage(num_prompt, num_output, num_cached),
    }


def _placed(error: RequestError) -> RequestError:
    if error.param is None or error.param == "prompt_token_ids":
        error.param = "prompt"
    return error


class Chunks:
    """The events of one streamed completion, made of its outputs. Choice i * n + j is answer j to prompt i."""

    def __init__(self, state: ServerState, c: Completion) -> None:
        self._state, self._c = state, c
        body = c.body
        options = body.stream_options
        self._include_usage = bool(options and options.include_usage)
        self._continuous = bool(options and options.continuous_usage_stats)
        head = encode({"id": c.id, "object": "text_completion", "created": c.created_s, "model": c.model})
        self._head = b"data: " + head[:-1] + b',"choices":['
        self._num_prompt, self._num_output = sum(len(p.token_ids) for p in c.prompts), 0
        self._cached = [0] * len(c.prompts)
        num_choices = c.params.n * len(c.prompts)
        top, as_ids = body.logprobs or 0, bool(body.return_tokens_as_token_ids)
        self._shapes = [logprob_shapes.TextLogprobs(top, as_ids=as_ids) for _ in range(num_choices)]
        self._fresh = [True] * num_choices
        self._over = [False] * num_choices
        # new text and nothing else: nearly all events of nearly all streams
        self._plain = not (body.echo or body.return_token_ids) and body.logprobs is None
        self._before_text = [self._head + b'{"index":%d,"text":' % at for at in range(num_choices)]

    def render(self, output: RequestOutput, number: int = 0) -> bytes:
        """Events of what is new of prompt `number`; b"" if nothing has to be said."""
        self._cached[number] = output.num_cached_tokens
        pieces: list[bytes] = []
        for new in output.outputs:
            at = number * self._c.params.n + new.index
            if self._over[at]:
                continue
            if self._plain and new.finish_reason is None:
                self._num_output += len(new.token_ids)
                if new.text:
                    pieces += (self._before_text[at], encode(new.text), _NOTHING_ELSE, self._tail())
            else:
                pieces += self._rich(at, number, new, output)
        return b"".join(pieces)

    def _rich(self, at: int, number: int, new: CompletionOutput, output: RequestOutput) -> tuple[bytes, ...]:
        """An event that may hold anything."""
        state, c = self._state, self._c
        body, prompt = c.body, c.prompts[number]
        ended = new.finish_reason
        if ended is not None:
            check_end(new, c.params)
            self._over[at] = True
            ended = "length" if c.echo_only else ended
        first, self._fresh[at] = self._fresh[at], False
        echo = bool(body.echo) and first
        text = "" if c.echo_only else new.text
        self._num_output += 0 if c.echo_only else len(new.token_ids)
        if echo:
            text = _echoed(state, prompt) + text
        logprobs = _logprobs(
            state, c, prompt, self._shapes[at], new, output, with_prompt=echo, with_new=not c.echo_only
        )
        extra = b""
        if body.return_token_ids:
            extra = b',"token_ids":' + encode(new.token_ids)
            if first:
                extra += b',"prompt_token_ids":' + encode(prompt.token_ids)
        if not (text or ended or extra or (logprobs and logprobs["tokens"])):
            return ()
        return (
            self._before_text[at],
            encode(text),
            b',"logprobs":',
            encode(logprobs),
            b',"finish_reason":',
            encode(ended),
            b',"stop_reason":',
            encode(new.stop_reason),
            extra,
            b"}",
            self._tail(),
        )

    def end(self) -> bytes:
        """What comes behind all of them."""
        return (self._head + b'],"usage":' + self._counts() + b"}\n\n" if self._include_usage else b"") + DONE

    def _counts(self) -> bytes:
        return encode(usage(self._num_prompt, self._num_output, sum(self._cached)))

    def _tail(self) -> bytes:
        if self._continuous:
            return b'],"usage":' + self._counts() + b"}\n\n"
        return b'],"usage":null}\n\n' if self._include_usage else b"]}\n\n"


async def events(
    state: ServerState, c: Completion, chunks: Chunks, outlet: DirectOutlet | None
) -> AsyncGenerator[bytes, None]:
    """Server-sent events of one streamed completion, but for those that take the short way."""
    merged: Any = merge(_sources(state, c, "delta", outlet))
    started = False
    last = b""
    try:
        with state.working():
            async for number, output in merged:
                piece = chunks.render(output, number)
                if output.finished and len(c.prompts) == 1:
                    last = piece  # what follows is there already: one write for all of it
                elif piece:
                    started = True
                    yield piece
            started = True
            yield last + chunks.end()
    except Exception as error:
        if not started:
            raise _placed(error) if isinstance(error, RequestError) else error from None
        yield error_event(error)
    finally:
        await merged.aclose()


@post("/v1/completions", status_code=200, operation_class=operation(CompletionRequest, TextCompletion, streams=True))
async def completions(request: HttpRequest) -> Response[Any]:
    """Complete text or token ids, one prompt or several, whole or as server-sent events."""
    state: ServerState = request.app.state.server
    state.check_open()
    body, raw = await read_body(request, _decoder, state.options.body_timeout_s)
    params.check_keys(raw, CompletionRequest)
    c = await understand(state, body, f"cmpl-{body.request_id or request_id(request)}")
    if body.stream:
        chunks = Chunks(state, c)
        # deltas of several prompts meet in a queue
        outlet = DirectOutlet(chunks.render) if len(c.prompts) == 1 else None
        return await start(request, events(state, c, chunks, outlet), outlet=outlet)
    answer = await unless_gone(request, complete(state, c))
    return Response(encode(answer), media_type="application/json")
