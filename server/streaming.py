"""Server-sent events as ready bytes, and what to do when the client goes away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeVar

import msgspec
from litestar import Request
from litestar.response import Stream

from server.errors import ApiError, error_event

DONE = b"data: [DONE]\n\n"
T = TypeVar("T")
_encoder = msgspec.json.Encoder()


def event(data: Any) -> bytes:
    return b"data: " + _encoder.encode(data) + b"\n\n"


async def stream_response(events: AsyncIterator[bytes]) -> Stream:
    """Wait for the first event before the status is sent, so that a bad request still gets its 4xx."""
    try:
        first = await anext(events)
    except StopAsyncIteration:
        first = b""

    async def body() -> AsyncIterator[bytes]:
        try:
            if first:
                yield first
            async for piece in events:
                yield piece
            yield DONE
        except Exception as error:  # the status is out: the stream itself must say it
            yield error_event(error)
        finally:
            # reached by cancellation too, when the client is gone: closing the events aborts the request
            await events.aclose()  # type: ignore[attr-defined]

    return Stream(body(), media_type="text/event-stream", headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})


async def unless_gone(request: Request[Any, Any, Any], work: Awaitable[T]) -> T:
    """Await `work`, but give it up when the client disconnects (no server tells a handler that does not stream)."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ApiError(499, "the client closed the connection", type="client_closed_request")
    finally:
        for pending in (task, gone):
            if not pending.done():
                pending.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await pending


async def _disconnected(request: Request[Any, Any, Any]) -> None:
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            return
