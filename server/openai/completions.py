"""POST /v1/completions: text, token ids, or a list of either."""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec
from litestar import Response, post

from core.errors import RequestAbortedError
from core.outputs import RequestOutput
from server.errors import encode
from server.openai import logprobs as logprob_shapes
from server.openai import params
from server.openai.answers import TextCompletion
from server.openai.completion_chunks import CompletionChunks
from server.openai.completion_request import Completion, place, understand
from server.openai.generation import check_end
from server.openai.logprobs import TextLogprobs
from server.openai.schema import CompletionRequest
from server.openai.usage import usage
from server.openapi import operation
from server.presence import unless_gone
from server.rendering import stream
from server.state import HttpRequest, ServerState, merge, read_body, request_id

_decoder = msgspec.json.Decoder(CompletionRequest)


@post("/v1/completions", status_code=200, operation_class=operation(CompletionRequest, TextCompletion, streams=True))
async def completions(request: HttpRequest) -> Response[Any]:
    """Complete text or token ids, one prompt or several, whole or as server-sent events."""
    state: ServerState = request.app.state.server
    state.check_open()
    body, raw = await read_body(request, _decoder, state.options.body_timeout_s)
    params.check_keys(raw, CompletionRequest)
    c = await understand(state, body, f"cmpl-{body.request_id or request_id(request)}")
    if body.stream:
        asks = [partial(c.generate, state, "delta", i) for i in range(len(c.prompts))]
        return await stream(request, state, asks, CompletionChunks(state, c))
    answer = await unless_gone(request, complete(state, c))
    return Response(encode(answer), media_type="application/json")


async def complete(state: ServerState, c: Completion) -> dict[str, Any]:
    body = c.body
    finals: dict[int, RequestOutput] = {}
    with state.working():
        merged = merge([c.generate(state, "final", i) for i in range(len(c.prompts))])
        try:
            async for number, output in merged:
                finals[number] = output
        except Exception as error:
            place(error)
            raise
        finally:
            await merged.aclose()
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
            shape = TextLogprobs(body.logprobs or 0, as_ids=bool(body.return_tokens_as_token_ids))
            choice: dict[str, Any] = {
                "index": len(choices),
                "text": (prompt.shown(state) if body.echo else "") + new_text,
                "logprobs": c.logprobs(state, prompt, shape, answer, final, with_prompt=bool(body.echo)),
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
