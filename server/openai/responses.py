"""POST /v1/responses, stateless: nothing of a response is kept once it is sent, so `store` is always false.

The chat it means is made in response_items.py; here its answer gets the shape and the events of a response.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from litestar import Response, get, post, route
from litestar.handlers.base import BaseRouteHandler

from server.errors import ApiError, encode, rename, to_api_error
from server.openai import logprobs as logprob_shapes
from server.openai.answers import InputTokens, ResponseAnswer
from server.openai.blocks import Block, Change, Step, reasoning_tokens, stream, whole
from server.openai.chat import Chat, understand
from server.openai.params import refuse_unknown
from server.openai.response_items import to_chat
from server.openai.schema import ResponsesRequest
from server.openapi import operation
from server.state import HttpRequest, ServerState, read_body, request_id, unless_gone
from server.streaming import start

_decoder = msgspec.json.Decoder(ResponsesRequest)


def _id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"


@dataclass(slots=True)
class Reply:
    """One response: what was asked, and the chat that answers."""

    body: ResponsesRequest
    chat: Chat
    names: Mapping[str, str]
    id: str
    created_s: float

    @property
    def wants_logprobs(self) -> bool:
        return bool(self.chat.body.logprobs)

    def shape(
        self,
        status: str,
        output: list[dict[str, Any]],
        *,
        usage: dict[str, Any] | None = None,
        incomplete: str | None = None,
        error: ApiError | None = None,
    ) -> dict[str, Any]:
        """The response object."""
        body, params = self.body, self.chat.params
        text = {"format": {"type": "text"}, "verbosity": "medium", **{k: v for k, v in (body.text or {}).items() if v}}
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created_s,
            "completed_at": float(int(time.time())) if status == "completed" else None,
            "status": status,
            "background": False,
            "error": {"code": "server_error", "message": error.message} if error else None,
            "incomplete_details": {"reason": incomplete} if incomplete else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": None,
            "metadata": body.metadata or {},
            "model": self.chat.model,
            "output": output,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "prompt_cache_key": body.prompt_cache_key,
            "reasoning": {"effort": (body.reasoning or {}).get("effort"), "summary": None},
            "safety_identifier": body.safety_identifier,
            "service_tier": "default",
            "store": False,
            "temperature": params.temperature,
            "text": text,
            "tool_choice": body.tool_choice or ("auto" if self.chat.tools else "none"),
            "tools": [
                {"type": "function", "name": t["name"]} | {k: t.get(k) for k in ("description", "parameters", "strict")}
                for t in body.tools or ()
            ],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": params.top_p,
            "truncation": "disabled",
            "usage": usage,
            "user": body.user,
        }

    def usage(self, state: ServerState, step: Step) -> dict[str, Any]:
        num_input = len(self.chat.prompt)
        return {
            "input_tokens": num_input,
            "input_tokens_details": {"cached_tokens": step.num_cached_tokens, "cache_write_tokens": 0},
            "output_tokens": step.num_output_tokens,
            "output_tokens_details": {"reasoning_tokens": reasoning_tokens(state, step.blocks)},
            "total_tokens": num_input + step.num_output_tokens,
        }

    def ended(self, state: ServerState, step: Step, items: list[dict[str, Any]]) -> dict[str, Any]:
        """The response object of an answer that is over."""
        if step.finish_reason == "length":
            if items:
                items[-1]["status"] = "incomplete"
            return self.shape("incomplete", items, usage=self.usage(state, step), incomplete="max_output_tokens")
        return self.shape("completed", items, usage=self.usage(state, step))

    def logprobs(self, state: ServerState, positions: list[Any]) -> list[dict[str, Any]]:
        if not self.wants_logprobs:
            return []
        shape = logprob_shapes.chat(state, positions, self.body.top_logprobs or 0)
        return list(shape["content"]) if shape else []


def _item(block: Block, item_id: str, status: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    empty = status == "in_progress"  # the block may have grown already when it is told that it opens
    if block.kind == "call":
        return {
            "type": "function_call",
            "id": item_id,
            "call_id": block.call_id,
            "name": block.name,
            "arguments": "" if empty else block.text,
            "status": status,
        }
    if block.kind == "reasoning":
        content = [] if empty else [{"type": "reasoning_text", "text": block.text}]
        return {"type": "reasoning", "id": item_id, "summary": [], "content": content, "status": status}
    return {
        "type": "message",
        "id": item_id,
        "role": "assistant",
        "status": status,
        "content": [] if empty else [_part(block, logprobs)],
    }


def _part(block: Block, logprobs: list[dict[str, Any]], *, empty: bool = False) -> dict[str, Any]:
    text = "" if empty else block.text
    if block.kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


_PREFIX = {"reasoning": "rs", "text": "msg", "call": "fc"}


async def complete(state: ServerState, reply: Reply) -> dict[str, Any]:
    try:
        step = await whole(state, reply.chat)
    except Exception as error:
        rename(error, reply.names)
        raise
    logprobs = reply.logprobs(state, step.logprobs)
    items = [_item(b, _id(_PREFIX[b.kind]), "completed", logprobs) for b in step.blocks]
    return reply.ended(state, step, items)


class _Events:
    """Numbers the events of one response and keeps its items."""

    def __init__(self, state: ServerState, reply: Reply) -> None:
        self._state, self._reply = state, reply
        self._number = 0
        self._items: list[dict[str, Any]] = []
        self._logprobs: list[dict[str, Any]] = []
        """Of the text that is open."""
        self._pending: list[dict[str, Any]] = []
        """Of tokens whose text has not come out yet."""

    def event(self, kind: str, **fields: Any) -> bytes:
        data = encode({"type": kind, "sequence_number": self._number, **fields})
        self._number += 1
        return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"

    def begin(self) -> bytes:
        shape = self._reply.shape("in_progress", [])
        return self.event("response.created", response=shape) + self.event("response.in_progress", response=shape)

    def step(self, step: Step) -> bytes:
        if self._reply.wants_logprobs:
            self._pending += self._reply.logprobs(self._state, step.logprobs)
        pieces = [self._change(c, ended=step.finish_reason) for c in step.changes]
        if step.changes and not any(c.block.kind == "text" for c in step.changes):
            self._pending.clear()
        if step.finish_reason is not None:
            shape = self._reply.ended(self._state, step, self._items)
            pieces.append(self.event(f"response.{shape['status']}", response=shape))
        return b"".join(pieces)

    def fail(self, error: BaseException) -> bytes:
        """What a stream that has begun says when it cannot go on."""
        answer = to_api_error(error)
        said = self.event("error", code=answer.code, message=answer.message, param=answer.param)
        return said + self.event("response.failed", response=self._reply.shape("failed", self._items, error=answer))

    def _change(self, change: Change, *, ended: str | None) -> bytes:
        block, index = change.block, change.index
        if change.what == "open":
            self._items.append(_item(block, _id(_PREFIX[block.kind]), "in_progress", []))
            self._logprobs = []
            opened = self.event("response.output_item.added", output_index=index, item=self._items[index])
            if block.kind == "call":
                return opened
            where = {"item_id": self._items[index]["id"], "output_index": index, "content_index": 0}
            return opened + self.event("response.content_part.added", **where, part=_part(block, [], empty=True))
        where = {"item_id": self._items[index]["id"], "output_index": index}
        if block.kind != "call":
            where["content_index"] = 0
        if change.what == "more":
            return self._more(block, where, change.piece)
        return self._close(block, where, index)

    def _more(self, block: Block, where: dict[str, Any], piece: str) -> bytes:
        if block.kind == "call":
            return self.event("response.function_call_arguments.delta", **where, delta=piece)
        if block.kind == "reasoning":
            return self.event("response.reasoning_text.delta", **where, delta=piece)
        logprobs, self._pending = self._pending, []
        self._logprobs += logprobs
        shown = [{k: v for k, v in p.items() if k != "bytes"} for p in logprobs]
        return self.event("response.output_text.delta", **where, delta=piece, logprobs=shown)

    def _close(self, block: Block, where: dict[str, Any], index: int) -> bytes:
        self._items[index] = item = _item(block, where["item_id"], "completed", self._logprobs)
        if block.kind == "call":
            done = self.event("response.function_call_arguments.done", **where, name=block.name, arguments=block.text)
            return done + self.event("response.output_item.done", output_index=index, item=item)
        if block.kind == "reasoning":
            done = self.event("response.reasoning_text.done", **where, text=block.text)
        else:
            shown = [{k: v for k, v in p.items() if k != "bytes"} for p in self._logprobs]
            done = self.event("response.output_text.done", **where, text=block.text, logprobs=shown)
        done += self.event("response.content_part.done", **where, part=_part(block, self._logprobs))
        return done + self.event("response.output_item.done", output_index=index, item=item)


async def events(state: ServerState, reply: Reply) -> AsyncGenerator[bytes, None]:
    """Server-sent events of one response, in the order that OpenAI documents."""
    made = _Events(state, reply)
    steps = stream(state, reply.chat)
    begun = False
    try:
        async for step in steps:
            head = b"" if begun else made.begin()
            begun = True
            if piece := head + made.step(step):
                yield piece
    except Exception as error:
        rename(error, reply.names)
        if not begun:
            raise
        yield made.fail(error)
    finally:
        await steps.aclose()


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
        return await start(request, events(state, reply))
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
