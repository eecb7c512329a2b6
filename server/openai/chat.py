"""POST /v1/chat/completions."""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec
from litestar import Response, post

from core.outputs import CompletionOutput
from server.errors import encode
from server.openai import logprobs as logprob_shapes
from server.openai import params
from server.openai.answers import ChatCompletion
from server.openai.chat_chunks import ChatChunks
from server.openai.chat_request import Chat, understand
from server.openai.generation import check_end, final_output
from server.openai.schema import ChatCompletionRequest
from server.openai.usage import usage
from server.openapi import operation
from server.presence import unless_gone
from server.rendering import stream
from server.state import HttpRequest, ServerState, read_body, request_id

_decoder = msgspec.json.Decoder(ChatCompletionRequest)


@post(
    "/v1/chat/completions",
    status_code=200,
    operation_class=operation(ChatCompletionRequest, ChatCompletion, streams=True),
)
async def chat_completions(request: HttpRequest) -> Response[Any]:
    """Answer a chat, whole or as server-sent events."""
    state: ServerState = request.app.state.server
    state.check_open()
    body, raw = await read_body(request, _decoder, state.options.body_timeout_s)
    params.check_keys(raw, ChatCompletionRequest)
    id = f"chatcmpl-{body.request_id or request_id(request)}"
    chat = await understand(state, request.app.state.parsers, body, id)
    if body.stream:
        return await stream(request, state, [partial(chat.generate, state, "delta")], ChatChunks(state, chat))
    answer = await unless_gone(request, complete(state, chat))
    return Response(encode(answer), media_type="application/json")


async def complete(state: ServerState, chat: Chat) -> dict[str, Any]:
    """The whole answer."""
    final = await final_output(state, chat.generate(state, "final"))
    choices = []
    for answer in final.outputs:
        check_end(answer, chat.params)
        choices.append(_choice(state, chat, answer))
    result: dict[str, Any] = {
        "id": chat.id,
        "object": "chat.completion",
        "created": chat.created_s,
        "model": chat.model,
        "choices": choices,
        "usage": usage(len(chat.prompt), sum(len(o.token_ids) for o in final.outputs), final.num_cached_tokens),
    }
    if chat.body.prompt_logprobs is not None:
        result["prompt_logprobs"] = logprob_shapes.prompt(final.prompt_logprobs)
    if chat.body.return_token_ids:
        result["prompt_token_ids"] = chat.prompt
    return result


def _choice(state: ServerState, chat: Chat, output: CompletionOutput) -> dict[str, Any]:
    answer = chat.answer()
    delta, rest = answer.feed(output.text, output.token_ids), answer.finish()
    content = chat.echo + delta.content + rest.content
    reasoning = delta.reasoning + rest.reasoning
    calls = dict(delta.calls)
    for index, call in rest.calls.items():
        if index in calls:
            calls[index].arguments += call.arguments
        else:
            calls[index] = call
    if calls and not content.strip():
        content = ""
    message: dict[str, Any] = {
        "role": state.options.response_role,
        "content": content if content or not calls else None,
        "refusal": None,
    }
    if reasoning and chat.body.include_reasoning is not False:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments or "{}"}}
            for c in calls.values()
        ]
    choice: dict[str, Any] = {
        "index": output.index,
        "message": message,
        "logprobs": logprob_shapes.chat(
            state, output.logprobs, chat.body.top_logprobs or 0, as_ids=bool(chat.body.return_tokens_as_token_ids)
        )
        if chat.body.logprobs
        else None,
        "finish_reason": chat.finish_reason(output.finish_reason, answer),
        "stop_reason": output.stop_reason,
    }
    if chat.body.return_token_ids:
        choice["token_ids"] = output.token_ids
    return choice
