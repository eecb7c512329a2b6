"""POST /v1/chat/completions"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec
from litestar import Request, Response, post

from core.errors import RequestError
from core.outputs import RequestOutput
from core.sampling_params import SamplingParams
from server.openai.body import parse_body, sampling_params
from server.openai.logprobs import chat_logprobs, prompt_logprobs
from server.openai.schema import ChatBody, ChatChoice, ChatChunk, ChatCompletion, ChunkChoice, Delta, Message, Usage
from server.openai.usage import include_usage, usage_of
from server.state import ServerState
from server.streaming import event, stream_response, unless_gone

LONG_CHAT_MESSAGES = 50
"""Longer conversations are rendered in a thread."""


@post("/v1/chat/completions", status_code=200)
async def chat_completions(request: Request[Any, Any, Any], server: ServerState) -> Response[Any]:
    body = parse_body(await request.body(), ChatBody)
    model = server.admit(body.model)
    refuse_what_is_missing(body)
    params = sampling_params(body, server.sampling_defaults)
    messages = [normalise(m, i) for i, m in enumerate(body.messages)]
    options = dict(body.chat_template_kwargs or {})
    options["add_generation_prompt"] = body.add_generation_prompt and not body.continue_final_message
    options["continue_final_message"] = body.continue_final_message
    tools = None if body.tool_choice == "none" else body.tools
    if len(messages) > LONG_CHAT_MESSAGES:
        text = await asyncio.to_thread(server.engine.render_chat, messages, tools, **options)
    else:
        text = server.engine.render_chat(messages, tools, **options)
    chat_id = f"chatcmpl-{body.request_id or uuid.uuid4().hex}"
    outputs = server.engine.generate(
        text, params, chat_id, priority=body.priority, cache_salt=body.cache_salt or "",
        output_kind="delta" if body.stream else "final", add_special_tokens=bool(body.add_special_tokens),
    )
    if body.stream:
        return await stream_response(_events(outputs, body, chat_id, model, params))
    output = await unless_gone(request, _last(outputs))
    return Response(_completion(output, body, chat_id, model), media_type="application/json")


def refuse_what_is_missing(body: ChatBody) -> None:
    kind = (body.response_format or {}).get("type", "text")
    if kind != "text":
        raise RequestError(f"response_format {kind!r} is not there yet; only 'text' is", param="response_format")
    if body.tool_choice not in (None, "auto", "none"):
        raise RequestError("tool_choice other than auto and none is not there yet", param="tool_choice")


def normalise(message: Mapping[str, Any], index: int) -> dict[str, Any]:
    """One message as chat templates expect it: text content, role system for developer."""
    where = f"messages[{index}]"
    role = message.get("role")
    if role not in ("system", "developer", "user", "assistant", "tool"):
        raise RequestError(f"{where}.role is {role!r}, not system, developer, user, assistant or tool", param="messages")
    content = message.get("content")
    if isinstance(content, list):
        texts = []
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind not in ("text", "input_text") or not isinstance(part.get("text"), str):
                raise RequestError(f"{where} has a part of type {kind!r}; this model takes text alone", param="messages")
            texts.append(part["text"])
        content = "\n".join(texts)
    elif not (isinstance(content, str) or (content is None and role == "assistant")):
        raise RequestError(f"{where}.content must be text or a list of text parts", param="messages")
    result = {**message, "role": "system" if role == "developer" else role, "content": content or ""}
    calls = []
    for call in message.get("tool_calls") or []:
        function = dict(call.get("function") or {})
        # templates print arguments as an object; clients send them as JSON text
        if isinstance(function.get("arguments"), str):
            try:
                function["arguments"] = msgspec.json.decode(function["arguments"] or "{}")
            except msgspec.DecodeError as error:
                raise RequestError(f"{where}: a tool call's arguments are not JSON: {error}", param="messages") from error
        calls.append({**call, "function": function})
    if calls:
        result["tool_calls"] = calls
    return result


async def _last(outputs: AsyncIterator[RequestOutput]) -> RequestOutput:
    final = None
    try:
        async for output in outputs:
            final = output
    finally:
        await outputs.aclose()  # type: ignore[attr-defined]
    assert final is not None
    return final


def _completion(output: RequestOutput, body: ChatBody, chat_id: str, model: str) -> bytes:
    role = "assistant"
    choices = []
    for answer in output.outputs:
        if answer.finish_reason == "error":
            raise RequestError(answer.error or "the request failed")
        choice = ChatChoice(
            index=answer.index, message=Message(role, answer.text), finish_reason=answer.finish_reason or "stop",
            logprobs=chat_logprobs(answer.logprobs), stop_reason=answer.stop_reason,
        )
        if body.return_token_ids:
            choice.token_ids = answer.token_ids
        choices.append(choice)
    completion = ChatCompletion(
        id=chat_id, created=int(time.time()), model=model, choices=choices, usage=usage_of([output])
    )
    if body.prompt_logprobs is not None:
        completion.prompt_logprobs = prompt_logprobs(output.prompt_logprobs)
    if body.return_token_ids:
        completion.prompt_token_ids = output.prompt_token_ids
    return msgspec.json.encode(completion)


async def _events(
    outputs: AsyncIterator[RequestOutput], body: ChatBody, chat_id: str, model: str, params: SamplingParams
) -> AsyncIterator[bytes]:
    created = int(time.time())
    wants_usage, continuous = include_usage(body)
    begun: set[int] = set()
    num_prompt = num_output = num_cached = 0

    def usage() -> Usage:
        details = {"cached_tokens": num_cached} if num_cached else None
        return Usage(num_prompt, num_output, num_prompt + num_output, details)

    try:
        async for output in outputs:
            num_prompt, num_cached = len(output.prompt_token_ids), output.num_cached_tokens
            for answer in output.outputs:
                num_output += len(answer.token_ids)
                if answer.finish_reason == "error":
                    raise RequestError(answer.error or "the request failed")
                delta = Delta(content=answer.text if answer.text else None)
                if answer.index not in begun:
                    begun.add(answer.index)
                    delta = Delta("assistant", answer.text)
                elif not answer.text and answer.finish_reason is None and not answer.logprobs:
                    continue  # half a character, or a stop string in the making
                choice = ChunkChoice(
                    index=answer.index, delta=delta, logprobs=chat_logprobs(answer.logprobs),
                    finish_reason=answer.finish_reason,
                )
                if answer.finish_reason is not None:
                    choice.stop_reason = answer.stop_reason
                if body.return_token_ids:
                    choice.token_ids = answer.token_ids
                chunk = ChatChunk(id=chat_id, created=created, model=model, choices=[choice])
                if wants_usage:
                    chunk.usage = usage() if continuous else None
                yield event(chunk)
        if wants_usage:
            yield event(ChatChunk(id=chat_id, created=created, model=model, choices=[], usage=usage()))
    finally:
        await outputs.aclose()  # type: ignore[attr-defined]
