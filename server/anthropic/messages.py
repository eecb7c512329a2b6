"""POST /v1/messages and /v1/messages/count_tokens, with Anthropic's answers, events and errors."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import msgspec
from litestar import Response, post
from litestar.handlers.base import BaseRouteHandler

from server.anthropic.errors import handle
from server.anthropic.message_events import MessageEvents
from server.anthropic.reply import Reply, content_block
from server.anthropic.schema import InputTokenCount, MessageAnswer, MessagesError, MessagesRequest
from server.anthropic.translate import to_chat
from server.errors import ApiError, encode, rename
from server.openai.blocks import whole
from server.openai.chat_request import understand
from server.openapi import operation
from server.presence import unless_gone
from server.rendering import stream
from server.state import HttpRequest, ServerState, read_body, request_id

_decoder = msgspec.json.Decoder(MessagesRequest)


async def complete(state: ServerState, reply: Reply) -> dict[str, Any]:
    try:
        step = await whole(state, reply.chat)
    except Exception as error:
        rename(error, reply.names)
        raise
    return reply.message([content_block(b) for b in step.blocks], reply.usage(step), **reply.ended(step))


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
        asks = [partial(reply.chat.generate, state, "delta")]
        return await stream(request, state, asks, MessageEvents(reply), headers)
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
