"""A client's end of the wire: one zmq socket to the engine, one from it. Belongs to one event loop.

What comes is taken in a callback of the loop, everything that is there at a time, with no task or future in between.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import zmq

from core.messages import FromEngine, ToEngine, encoder, from_engine_decoder

logger = logging.getLogger("backplane")

MAX_AT_A_TIME = 64
"""Messages taken in before other callbacks of the loop have their turn."""


class Link:
    """`take` gets every message of the engine; `broken` is told once, and nothing after it, if one cannot be taken."""

    def __init__(
        self, context: zmq.Context, outbox: str, take: Callable[[FromEngine], None], broken: Callable[[str], None]
    ) -> None:
        self._take, self._broken = take, broken
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._to_engine: zmq.Socket[bytes] | None = None
        self._from_engine: zmq.Socket[bytes] = context.socket(zmq.PULL)
        self._from_engine.set_hwm(0)
        self._from_engine.bind(outbox)
        self._closed = False
        self._descriptor = self._from_engine.getsockopt(zmq.FD)
        self._loop.add_reader(self._descriptor, self._read)
        # the descriptor tells of changes alone: what came before it was watched is looked for
        self._loop.call_soon(self._read)

    def connect(self, inbox: str) -> None:
        self._to_engine = self._context.socket(zmq.PUSH)
        self._to_engine.set_hwm(0)
        self._to_engine.connect(inbox)

    def send(self, message: ToEngine) -> None:
        # no high-water mark: this neither blocks nor fails, even before the other side has bound its address
        if self._to_engine is not None and not self._closed:
            self._to_engine.send(encoder.encode(message), zmq.NOBLOCK)

    def _read(self) -> None:
        if self._closed:
            return
        try:
            for _ in range(MAX_AT_A_TIME):
                self._take(from_engine_decoder.decode(self._from_engine.recv(zmq.NOBLOCK)))
                if self._closed:
                    return
        except zmq.Again:
            return
        except Exception as error:  # nobody would hear of any request again
            logger.exception("what came from the engine could not be read")
            self._loop.remove_reader(self._descriptor)
            self._broken(f"what came from the engine could not be read: {type(error).__name__}: {error}")
            return
        self._loop.call_soon(self._read)

    def close(self, linger_ms: int = 0) -> None:
        """Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._descriptor)
        self._from_engine.close(linger=0)
        if self._to_engine is not None:
            self._to_engine.close(linger=linger_ms)
