"""Takes connections from a listening socket, many at a time.

uvloop takes one in a turn of its loop. A turn is long when there are a thousand streams to write, and connections would wait
for seconds. It also says little when descriptors run out.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Any

log = logging.getLogger("backplane.server")

BACKLOG = 4096
MAX_AT_A_TIME = 128
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_PAUSE_S = 1.0


class Acceptor:
    """Takes the place of asyncio's Server, as far as uvicorn uses that."""

    def __init__(
        self,
        sock: socket.socket,
        make_protocol: Callable[[], asyncio.Protocol],
        context: ssl.SSLContext | None,
        handshake_timeout_s: float,
    ) -> None:
        self._sock, self._make, self._context = sock, make_protocol, context
        self._handshake_timeout_s = handshake_timeout_s
        self._loop = asyncio.get_running_loop()
        self._opening: set[asyncio.Task[None]] = set()
        self._closed = False
        sock.setblocking(False)
        sock.listen(BACKLOG)
        self._loop.add_reader(sock.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(MAX_AT_A_TIME):
            try:
                connection, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                log.error("no connection can be taken: %s; raise the limit of open files (ulimit -n)", error.strerror)
                self._loop.remove_reader(self._sock.fileno())
                self._loop.call_later(_PAUSE_S, self._resume)
                return
            connection.setblocking(False)
            if connection.family != socket.AF_UNIX:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            task = self._loop.create_task(self._open(connection))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    def _resume(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._sock.fileno(), self._accept)

    async def _open(self, connection: socket.socket) -> None:
        options: dict[str, Any] = {}
        if self._context is not None:
            options = {"ssl": self._context, "ssl_handshake_timeout": self._handshake_timeout_s}
        try:
            await self._loop.connect_accepted_socket(self._make, connection, **options)
        except (TimeoutError, OSError) as error:  # a handshake that failed, or a client that is gone already
            connection.close()
            log.debug("a connection could not be opened: %s", error)

    def close(self) -> None:
        """Take no more. The socket is the caller's."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._sock.fileno())

    async def wait_closed(self) -> None:
        for task in list(self._opening):
            task.cancel()
        await asyncio.gather(*self._opening, return_exceptions=True)
