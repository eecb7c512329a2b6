"""The HTTP/1.1 connection: uvicorn's, with a bound on how long a request's head may take and how large it may be, and with
a short way for the pieces of a stream and for the news that the client is gone.

uvicorn waits without end for a head that has begun, and keeps all of it: a few slow clients could hold every descriptor.
A piece of a stream goes through three coroutines of ASGI layers that have nothing to do with it once the head is out. And of a
client that goes ASGI tells only who asks, so that every request would need a task that asks and one that is asked for.

A client that offers another protocol (`Upgrade: h2c`: Java's own, curl --http2) is answered in this one, as HTTP wants it. The
parser leaves off behind such a head, and what follows would be read as the next request.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024
_SCOPE = "backplane_connection"


class OwnConnection(Protocol):
    """What a request may do with its connection past ASGI."""

    def write_piece(self, piece: bytes) -> None:
        """A chunk of a body whose head is out."""

    def is_slow(self) -> bool:
        """The client has not read what was written: more would pile up."""

    def drained(self) -> Awaitable[None]:
        """Until it has, or is gone."""

    def watch(self, told: Callable[[], None]) -> None:
        """`told()` once the client is gone, in a callback of the loop. The body must have been read."""

    def unwatch(self, told: Callable[[], None]) -> None: ...


def own_connection(scope: Any) -> OwnConnection | None:
    """None: the connection is not ours, the app is served by another server; then ASGI's `send` and `receive` have to do."""
    return scope.get(_SCOPE)  # type: ignore[no-any-return]


def connection_class(head_timeout_s: float) -> type[HttpToolsProtocol]:
    """Class of connections that close when a request's head takes longer than this, in seconds."""

    class Connection(HttpToolsProtocol):
        _timer: asyncio.TimerHandle | None = None
        _head_bytes = 0
        _repeating = False
        """The parser reads a head again that was read already."""
        _running: Any = None
        """The request that is being answered; uvicorn's `cycle` is the last one that came in."""
        _is_lost = False

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watchers: set[Callable[[], None]] = set()
            self._arm()

        def connection_lost(self, exc: Exception | None) -> None:
            self._is_lost = True
            for told in tuple(self._watchers):
                told()
            self._disarm()
            if self._running is not None and not self._running.response_complete:
                self._running.disconnected = True
                self._running.message_event.set()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            self._unset_keepalive_if_required()
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                self._stay(data[upgrade.args[0] :])
            except httptools.HttpParserError:
                message = "Invalid HTTP request received."
                self.logger.warning(message)
                self.send_400_response(message)

        def _stay(self, rest: bytes) -> None:
            """Go on in HTTP/1.1 behind a head that offers another protocol. rest: what came behind it."""
            framing = self._framing()
            self.parser = httptools.HttpRequestParser(self)
            with contextlib.suppress(AttributeError):  # httptools before 0.6.3 is lenient by itself
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            if framing:
                self._repeating = True
                self.parser.feed_data(b"POST / HTTP/1.1\r\n" + framing + b"\r\n")
                self._repeating = False
            if rest:
                self.data_received(rest)

        def _framing(self) -> bytes:
            """The lines of the last head that say how long its body is; b"" without a body."""
            names = (b"content-length", b"transfer-encoding")
            return b"".join(b"%b: %b\r\n" % h for h in self.headers if h[0] in names and h[1].strip() != b"0")

        def _start_asgi_task(self, cycle: Any, app: Any) -> None:
            self._running = cycle
            super()._start_asgi_task(cycle, app)

        def write_piece(self, piece: bytes) -> None:
            if piece and not self.transport.is_closing():
                self.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))

        def is_slow(self) -> bool:
            return self.flow.write_paused

        def drained(self) -> Awaitable[None]:
            return self.flow.drain()

        def watch(self, told: Callable[[], None]) -> None:
            self._watchers.add(told)
            if self._is_lost:
                self.loop.call_soon(told)
            else:
                # a large body stops the reading, and who does not read hears of no end
                self.flow.resume_reading()

        def unwatch(self, told: Callable[[], None]) -> None:
            self._watchers.discard(told)

        def on_message_begin(self) -> None:
            if self._repeating:
                return
            super().on_message_begin()
            self.scope[_SCOPE] = self  # type: ignore[literal-required]
            self._head_bytes = 0
            self._arm()

        def on_url(self, url: bytes) -> None:
            if self._repeating:
                return
            self._count(len(url))
            super().on_url(url)

        def on_header(self, name: bytes, value: bytes) -> None:
            if self._repeating:
                return
            self._count(len(name) + len(value))
            super().on_header(name, value)

        def on_headers_complete(self) -> None:
            if self._repeating:
                return
            self._disarm()
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            if self.parser.should_upgrade() and self._framing():
                return  # the body follows
            super().on_message_complete()

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
