"""POST /v1/responses, stateless: nothing of a response is kept once it is sent, so `store` is always false.

The chat it means is made in response_items.py; its answer gets the shape of a response in response_reply.py, and its events in
response_events.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import msgspec
from litestar import Response, get, post, route
from litestar.handlers.base import BaseRouteHandler

from server.errors import ApiError, encode, rename
from server.openai.answers import InputTokens, ResponseAnswer
from server.openai.blocks import whole
from server.openai.chat_request import understand
from server.openai.params import refuse_unknown
from server.openai.response_events import ResponseEvents
from server.openai.response_items import to_chat
from server.openai.response_reply import Reply, item, item_id
from server.openai.schema import ResponsesRequest
from server.openapi import operation
from server.presence import unless_gone
from server.rendering import stream
from server.state import HttpRequest, ServerState, read_body, request_id

_decoder = msgspec.json.Decoder(ResponsesRequest)


async def complete(state: ServerState, reply: Reply) -> dict[str, Any]:
    try:
        step = await whole(state, reply.chat)
    except Exception as error:
        rename(error, reply.names)
        raise
    logprobs = reply.logprobs(state, step.logprobs)
    items = [item(b, item_id(b), "completed", logprobs) for b in step.blocks]
    return reply.ended(state, step, items)


async def _understand(request: HttpRequest, *, counting: bool = False) -> Reply:
    state: ServerState = request.app.state.server
    body, raw = await read_body(request, _decoder, state.options.body_timeout_s)
    refuse_unknown(raw, ResponsesRequest, "/v1/responses")
    names: Mapping[str, str] = {}
    try:
        chat_body, names = to_chat(body)
        id = body.request_id or request_id(request)
        chat = await understand(state, request.app.state.parsers, chat_body, f"resp_{id}", counting=counting)
    except Exception as error:
        rename(error, names)
        raise
    return Reply(body, chat, names, chat.id, float(chat.created_s))


@post("/v1/responses", status_code=200, operation_class=operation(ResponsesRequest, ResponseAnswer, streams=True))
async def responses(request: HttpRequest) -> Response[Any]:
    """Answer items, whole or as server-sent events. Nothing is stored."""
    state: ServerState = request.app.state.server
    state.check_open()
    reply = await _understand(request)
    if reply.body.stream:
        return await stream(
            request, state, [partial(reply.chat.generate, state, "delta")], ResponseEvents(state, reply)
        )
    answer = await unless_gone(request, complete(state, reply))
    return Response(encode(answer), media_type="application/json")


@post("/v1/responses/input_tokens", status_code=200, operation_class=operation(ResponsesRequest, InputTokens))
async def count_input_tokens(request: HttpRequest) -> Response[bytes]:
    """How many tokens a response's input would have."""
    reply = await _understand(request, counting=True)
    count = {"object": "response.input_tokens", "input_tokens": len(reply.chat.prompt)}
    return Response(encode(count), media_type="application/json")


def _not_stored(response_id: str) -> ApiError:
    return ApiError(
        f"the response {response_id!r} does not exist: responses are not stored here",
        status=404,
        code="response_not_found",
    )


# one handler for both methods, so that OPTIONS names both
@route("/v1/responses/{response_id:str}", http_method=["GET", "DELETE"], status_code=200, operation_class=operation())
async def stored_response(response_id: str) -> None:
    """Responses are not stored: always 404."""
    raise _not_stored(response_id)


@get("/v1/responses/{response_id:str}/input_items", operation_class=operation())
async def stored_items(response_id: str) -> None:
    """Responses are not stored: always 404."""
    raise _not_stored(response_id)


ROUTES: list[BaseRouteHandler] = [responses, count_input_tokens, stored_response, stored_items]
