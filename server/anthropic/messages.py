"""POST /v1/messages and /v1/messages/count_tokens, with Anthropic's answers, events and errors."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from litestar import Request, Response, post
from litestar.handlers.base import BaseRouteHandler

from server.anthropic.schema import InputTokenCount, MessageAnswer, MessagesError, MessagesRequest
from server.anthropic.translate import to_chat
from server.errors import ApiError, encode, normalise, rename, to_api_error
from server.openai.blocks import Block, Change, Step, stream, whole
from server.openai.chat import Chat, understand
from server.openapi import operation
from server.state import HttpRequest, ServerState, read_body, request_id, unless_gone
from server.streaming import start

_decoder = msgspec.json.Decoder(MessagesRequest)
_ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def _error(error: BaseException, id: str) -> tuple[ApiError, dict[str, Any]]:
    answer = to_api_error(error)
    kind = _ERRORS.get(answer.status, "invalid_request_error" if answer.status < 500 else "api_error")
    return answer, {"type": "error", "error": {"type": kind, "message": answer.message}, "request_id": id}


def handle(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Exception handler of these routes: Anthropic's error shape, for what the guards say too."""
    id = request_id(request)
    answer, body = _error(normalise(request, error), id)
    headers = {"request-id": id, **answer.headers}
    return Response(encode(body), status_code=answer.status, media_type="application/json", headers=headers)


@dataclass(slots=True)
class Reply:
    body: MessagesRequest
    chat: Chat
    names: Mapping[str, str]
    request_id: str

    def message(self, content: list[dict[str, Any]], usage: dict[str, Any], **ended: Any) -> dict[str, Any]:
        return {
            "id": self.chat.id,
            "type": "message",
            "role": "assistant",
            "model": self.chat.model,
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
            **ended,
            "usage": usage,
        }

    def usage(self, step: Step | None) -> dict[str, Any]:
        """Prompt tokens that came from the cache are counted apart, as Anthropic does. They are known at the end."""
        cached = step.num_cached_tokens if step else 0
        return {
            "input_tokens": len(self.chat.prompt) - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": step.num_output_tokens if step else 0,
        }

    def ended(self, step: Step) -> dict[str, Any]:
        if step.finish_reason == "length":
            return {"stop_reason": "max_tokens", "stop_sequence": None}
        if step.finish_reason == "tool_calls":
            return {"stop_reason": "tool_use", "stop_sequence": None}
        if isinstance(step.stop_reason, str):
            return {"stop_reason": "stop_sequence", "stop_sequence": step.stop_reason}
        return {"stop_reason": "end_turn", "stop_sequence": None}


def _block(block: Block, *, empty: bool = False) -> dict[str, Any]:
    text = "" if empty else block.text
    if block.kind == "reasoning":
        return {"type": "thinking", "thinking": text, "signature": ""}
    if block.kind == "call":
        return {"type": "tool_use", "id": block.call_id, "name": block.name, "input": {} if empty else _input(text)}
    return {"type": "text", "text": text, "citations": None}


def _input(text: str) -> dict[str, Any]:
    """Arguments as the object that this API wants. A call cut off by max_tokens has none that can be read."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


async def complete(state: ServerState, reply: Reply) -> dict[str, Any]:
    try:
        step = await whole(state, reply.chat)
    except Exception as error:
        rename(error, reply.names)
        raise
    return reply.message([_block(b) for b in step.blocks], reply.usage(step), **reply.ended(step))


def _event(data: dict[str, Any]) -> bytes:
    return b"event: " + data["type"].encode() + b"\ndata: " + encode(data) + b"\n\n"


_DELTAS = {
    "reasoning": ("thinking_delta", "thinking"),
    "text": ("text_delta", "text"),
    "call": ("input_json_delta", "partial_json"),
}


def _change(change: Change) -> bytes:
    index = change.index
    if change.what == "open":
        block = _block(change.block, empty=True)
        return _event({"type": "content_block_start", "index": index, "content_block": block})
    if change.what == "more":
        kind, key = _DELTAS[change.block.kind]
        delta = {"type": kind, key: change.piece}
        return _event({"type": "content_block_delta", "index": index, "delta": delta})
    return _event({"type": "content_block_stop", "index": index})


async def events(state: ServerState, reply: Reply) -> AsyncGenerator[bytes, None]:
    """Server-sent events of one message."""
    steps = stream(state, reply.chat)
    begun = False
    try:
        async for step in steps:
            pieces = []
            if not begun:
                begun = True
                begin = _event({"type": "message_start", "message": reply.message([], reply.usage(None))})
                pieces += [begin, _event({"type": "ping"})]
            pieces += [_change(c) for c in step.changes]
            if step.finish_reason is not None:
                delta = {"type": "message_delta", "delta": reply.ended(step), "usage": reply.usage(step)}
                pieces += [_event(delta), _event({"type": "message_stop"})]
            if pieces:
                yield b"".join(pieces)
    except Exception as error:
        rename(error, reply.names)
        if not begun:
            raise
        yield _event(_error(error, reply.request_id)[1])
    finally:
        await steps.aclose()


async def _understand(request: HttpRequest, *, counting: bool = False) -> Reply:
    state: ServerState = request.app.state.server
    body, _ = await read_body(request, _decoder, state.options.body_timeout_s)
    if body.max_tokens is None and not counting:
        raise ApiError("max_tokens is required", param="max_tokens", code="missing_required_parameter")
    names: Mapping[str, str] = {}
    id = request_id(request)
    try:
        chat_body, names = to_chat(body)
        chat = await understand(state, request.app.state.parsers, chat_body, f"msg_{id}", counting=counting)
    except Exception as error:
        rename(error, names)
        raise
    return Reply(body, chat, names, id)


@post(
    "/v1/messages",
    status_code=200,
    exception_handlers={Exception: handle},
    operation_class=operation(MessagesRequest, MessageAnswer, streams=True, error=MessagesError),
)
async def messages(request: HttpRequest) -> Response[Any]:
    """Answer messages, whole or as server-sent events."""
    state: ServerState = request.app.state.server
    state.check_open()
    reply = await _understand(request)
    headers = {"request-id": reply.request_id}
    if reply.body.stream:
        return await start(request, events(state, reply), headers)
    answer = await unless_gone(request, complete(state, reply))
    return Response(encode(answer), media_type="application/json", headers=headers)


@post(
    "/v1/messages/count_tokens",
    status_code=200,
    exception_handlers={Exception: handle},
    operation_class=operation(MessagesRequest, InputTokenCount, error=MessagesError),
)
async def count_tokens(request: HttpRequest) -> Response[bytes]:
    """How many tokens a message's input would have."""
    reply = await _understand(request, counting=True)
    body = encode({"input_tokens": len(reply.chat.prompt)})
    return Response(body, media_type="application/json", headers={"request-id": reply.request_id})


ROUTES: list[BaseRouteHandler] = [messages, count_tokens]
