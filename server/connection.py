"""The HTTP/1.1 connection: uvicorn's, with a bound on how long a request's head may take and how large it may be.

uvicorn waits without end for a head that has begun, and keeps all of it: a few slow clients could hold every descriptor.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024


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

        def on_message_begin(self) -> None:
            super().on_message_begin()
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
