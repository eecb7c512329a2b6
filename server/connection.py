"""The HTTP/1.1 connection: uvicorn's, with a bound on how long a request's head may take and how large it may be, and with
a short way for the pieces of a stream.

uvicorn waits without end for a head that has begun, and keeps all of it: a few slow clients could hold every descriptor.
A piece of a stream goes through three coroutines of ASGI layers that have nothing to do with it once the head is out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024
_SCOPE = "backplane_connection"


def body_writer(scope: Any) -> Callable[[bytes], Awaitable[None] | None] | None:
    """What writes a piece of a body in chunks, once its head is out. It returns what to await when the client is slow.

    None: the connection is not ours, or the app is served by another server; then ASGI's `send` has to do.
    """
    connection = scope.get(_SCOPE)
    return None if connection is None else connection.write_piece  # type: ignore[no-any-return]


def connection_class(head_timeout_s: float) -> type[HttpToolsProtocol]:
    """Class of connections that close when a request's head takes longer than this, in seconds."""

    class Connection(HttpToolsProtocol):
        _timer: asyncio.TimerHandle | None = None
        _head_bytes = 0

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._arm()

        def connection_lost(self, exc: Exception | None) -> None:
            self._disarm()
            super().connection_lost(exc)

        def write_piece(self, piece: bytes) -> Awaitable[None] | None:
            if piece and not self.transport.is_closing():
                self.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            return self.flow.drain() if self.flow.write_paused else None

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self.scope[_SCOPE] = self  # type: ignore[literal-required]
            self._head_bytes = 0
            self._arm()

        def on_url(self, url: bytes) -> None:
            self._count(len(url))
            super().on_url(url)

        def on_header(self, name: bytes, value: bytes) -> None:
            self._count(len(name) + len(value))
            super().on_header(name, value)

        def on_headers_complete(self) -> None:
            self._disarm()
            super().on_headers_complete()

        def _count(self, num_bytes: int) -> None:
            self._head_bytes += num_bytes
            if self._head_bytes > MAX_HEAD_BYTES:
                # raised in the parser's callback, it ends the connection with a 400
                raise ValueError(f"the request's head is larger than {MAX_HEAD_BYTES} bytes")

        def _arm(self) -> None:
            self._disarm()
            self._timer = self.loop.call_later(head_timeout_s, self.transport.close)

        def _disarm(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return Connection
