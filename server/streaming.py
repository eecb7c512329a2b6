"""Server-sent events as ready bytes, and the ASGI response that writes them.

When the client goes, or the server stops, the generator is closed, and its `finally` aborts the request. While a slow client
blocks a write nothing is taken from the generator, so deltas merge in the engine's queue instead of piling up here.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

from litestar import Response

from core.outputs import RequestOutput
from server.connection import OwnConnection, own_connection
from server.errors import ClientGoneError, encode, to_api_error
from server.presence import unless_gone, while_there
from server.state import HttpRequest

log = logging.getLogger("backplane.server")

DONE = b"data: [DONE]\n\n"
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # nginx would collect the events otherwise
    (b"x-accel-buffering", b"no"),
]


def event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


def error_event(error: BaseException) -> bytes:
    """A stream that has begun can say what went wrong only in its own words."""
    return event(encode(to_api_error(error).body())) + DONE


class DirectOutlet:
    """The short way of a prompt's outputs: rendered and written as they come, with no task and no generator in between.

    Open from the response's second piece on, while the client reads what it gets.
    """

    def __init__(self, render: Callable[[RequestOutput, int], bytes], number: int) -> None:
        """`render`: the events of an output of prompt `number`; b"" for none."""
        self._render, self._number = render, number
        self.writer: OwnConnection | None = None
        """Set while the response is written, on a connection that has the short way."""

    def open(self) -> bool:
        return self.writer is not None and not self.writer.is_slow()

    def put(self, output: RequestOutput) -> None:
        piece = self._render(output, self._number)
        if piece and self.writer is not None:
            self.writer.write_piece(piece)


class _Writer:
    """The ASGI side: start, pieces, end; cancelled when the client goes."""

    def __init__(
        self,
        first: bytes,
        rest: AsyncGenerator[bytes, None],
        headers: Mapping[str, str],
        outlets: Sequence[DirectOutlet],
    ) -> None:
        self._first, self._rest, self._outlets = first, rest, outlets
        self._headers = [*_HEADERS, *((k.encode(), v.encode()) for k, v in headers.items())]

    async def _write(self, send: Any, writer: OwnConnection | None) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self._headers})
        await self._piece(self._first, send, writer)
        for outlet in self._outlets:
            outlet.writer = writer
        async for piece in self._rest:
            await self._piece(piece, send, writer)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _piece(self, piece: bytes, send: Any, writer: OwnConnection | None) -> None:
        if writer is None:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            return
        writer.write_piece(piece)
        if writer.is_slow():
            await writer.drained()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await while_there(scope, receive, self._write(send, own_connection(scope)))
        except ClientGoneError:
            pass
        except Exception as error:
            log.warning("a stream ended early: %s", error)
        finally:
            for outlet in self._outlets:
                outlet.writer = None
            await self._rest.aclose()


class EventStream(Response[None]):
    """Litestar response over a generator that has already given its first piece."""

    def __init__(
        self,
        first: bytes,
        rest: AsyncGenerator[bytes, None],
        headers: Mapping[str, str],
        outlets: Sequence[DirectOutlet] = (),
    ) -> None:
        super().__init__(content=None)
        self._writer = _Writer(first, rest, headers, outlets)

    def to_asgi_response(self, *args: Any, **kwargs: Any) -> Any:
        return self._writer


async def start(
    request: HttpRequest,
    events: AsyncGenerator[bytes, None],
    headers: Mapping[str, str] | None = None,
    outlets: Sequence[DirectOutlet] = (),
) -> EventStream:
    """Wait for the first piece: until then an error is still an answer with a status of its own.

    `outlets`: take the short way past `events`, which goes on with what is left.
    """
    try:
        first = await unless_gone(request, anext(events))
    except BaseException:
        await events.aclose()
        raise
    return EventStream(first, events, headers or {}, outlets)
