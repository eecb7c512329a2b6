"""POST /v1/completions"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from litestar import Request, Response, post

from core.errors import RequestError
from core.outputs import CompletionOutput, RequestOutput
from core.sampling_params import SamplingParams
from server.openai.body import parse_body, sampling_params
from server.openai.logprobs import completion_logprobs, prompt_logprobs
from server.openai.schema import Completion, CompletionBody, CompletionChoice
from server.openai.usage import include_usage, usage_of
from server.state import ServerState
from server.streaming import event, stream_response, unless_gone

MAX_PROMPTS = 2048


@post("/v1/completions", status_code=200)
async def completions(request: Request[Any, Any, Any], server: ServerState) -> Response[Any]:
    body = parse_body(await request.body(), CompletionBody)
    model = server.admit(body.model)
    params = sampling_params(body, server.sampling_defaults)
    prompts = as_prompts(body.prompt)
    completion_id = f"cmpl-{body.request_id or uuid.uuid4().hex}"
    kind = "delta" if body.stream else "final"
    streams = [
        server.engine.generate(
            prompt, params, f"{completion_id}-{i}", priority=body.priority, cache_salt=body.cache_salt or "",
            output_kind=kind, add_special_tokens=body.add_special_tokens is not False,
        )
        for i, prompt in enumerate(prompts)
    ]
    if body.stream:
        return await stream_response(_events(streams, body, params, completion_id, model))
    outputs = await unless_gone(request, _all(streams))
    choices = []
    for i, output in enumerate(outputs):
        for answer in output.outputs:
            choices.append(_choice(answer, output, body, i * params.n + answer.index, server, 0))
    completion = Completion(
        id=completion_id, created=int(time.time()), model=model, choices=choices, usage=usage_of(outputs)
    )
    return Response(msgspec.json.encode(completion), media_type="application/json")


def as_prompts(prompt: str | list[str | int | list[int]]) -> list[Any]:
    """One text, one list of token ids, or a list of texts or of lists of token ids."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise RequestError("prompt is empty; give text, token ids, or a list of either", param="prompt")
    if len({type(p) for p in prompt}) > 1:
        raise RequestError("prompt mixes text, token ids and lists; send one kind", param="prompt")
    if isinstance(prompt[0], int):
        return [prompt]
    if len(prompt) > MAX_PROMPTS:
        raise RequestError(f"{len(prompt)} prompts in one request; send at most {MAX_PROMPTS}", param="prompt")
    return list(prompt)


async def _all(streams: list[AsyncIterator[RequestOutput]]) -> list[RequestOutput]:
    async def last(stream: AsyncIterator[RequestOutput]) -> RequestOutput:
        final = None
        try:
            async for output in stream:
                final = output
        finally:
            await stream.aclose()  # type: ignore[attr-defined]
        assert final is not None
        return final

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_unwrapped(last(s))) for s in streams]
    results = [t.result() for t in tasks]
    for result in results:
        if isinstance(result, Exception):
            raise result
    return [r for r in results if not isinstance(r, Exception)]


async def _unwrapped(work: Any) -> RequestOutput | Exception:
    """One bad prompt must not cancel the others half-way with an ExceptionGroup."""
    try:
        return await work
    except Exception as error:  # handed on by the caller
        return error


def _choice(
    answer: CompletionOutput, output: RequestOutput, body: CompletionBody, index: int, server: ServerState, offset: int
) -> CompletionChoice:
    if answer.finish_reason == "error":
        raise RequestError(answer.error or "the request failed")
    text, positions = answer.text, answer.logprobs
    if body.echo:
        prompt = output.prompt
        if prompt is None:
            prompt = server.engine.tokenizer.decode(output.prompt_token_ids)
        text = prompt + text
        if positions is not None and output.prompt_logprobs is not None:
            positions = [*[p for p in output.prompt_logprobs if p is not None], *positions]
    choice = CompletionChoice(
        index=index, text=text, finish_reason=answer.finish_reason, stop_reason=answer.stop_reason,
        logprobs=completion_logprobs(positions, offset, body.logprobs or 0) if body.logprobs is not None else None,
    )
    if body.return_token_ids:
        choice.token_ids = answer.token_ids
    if body.prompt_logprobs is not None:
        choice.prompt_logprobs = prompt_logprobs(output.prompt_logprobs)
    return choice


async def _events(
    streams: list[AsyncIterator[RequestOutput]], body: CompletionBody, params: SamplingParams, completion_id: str,
    model: str,
) -> AsyncIterator[bytes]:
    created = int(time.time())
    wants_usage, continuous = include_usage(body)
    totals: dict[int, RequestOutput] = {}
    queue: asyncio.Queue[tuple[int, RequestOutput | Exception | None]] = asyncio.Queue()

    async def pump(i: int, stream: AsyncIterator[RequestOutput]) -> None:
        try:
            async for output in stream:
                await queue.put((i, output))
            await queue.put((i, None))
        except Exception as error:  # raised again by the one who reads the queue
            await queue.put((i, error))
        finally:
            await stream.aclose()  # type: ignore[attr-defined]

    tasks = [asyncio.create_task(pump(i, s)) for i, s in enumerate(streams)]
    offsets: dict[int, int] = {}
    echoed: set[int] = set()
    try:
        running = len(streams)
        while running:
            i, output = await queue.get()
            if output is None:
                running -= 1
                continue
            if isinstance(output, Exception):
                raise output
            for answer in output.outputs:
                if answer.finish_reason == "error":
                    raise RequestError(answer.error or "the request failed")
                index = i * params.n + answer.index
                text = answer.text
                if body.echo and index not in echoed:
                    echoed.add(index)
                    text = (output.prompt or "") + text
                total = totals.setdefault(i, RequestOutput(output.request_id, None, output.prompt_token_ids))
                total.num_cached_tokens = output.num_cached_tokens
                total.outputs.append(CompletionOutput(answer.index, token_ids=answer.token_ids))
                if not text and answer.finish_reason is None and not answer.logprobs:
                    continue
                offset = offsets.get(index, 0)
                offsets[index] = offset + len(text)
                choice = CompletionChoice(
                    index=index, text=text, finish_reason=answer.finish_reason, stop_reason=answer.stop_reason,
                    logprobs=completion_logprobs(answer.logprobs, offset, body.logprobs or 0),
                )
                if body.return_token_ids:
                    choice.token_ids = answer.token_ids
                chunk = Completion(id=completion_id, created=created, model=model, choices=[choice])
                if wants_usage:
                    chunk.usage = usage_of(list(totals.values())) if continuous else None
                yield event(chunk)
        if wants_usage:
            usage = usage_of(list(totals.values()))
            yield event(Completion(id=completion_id, created=created, model=model, choices=[], usage=usage))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
