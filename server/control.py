"""What a supervisor and its server processes say to each other: msgpack frames, length first, over a socket pair.

When one end closes, the process at that end is gone; nobody has to ask whether the other lives.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import msgspec

from core.messages import EngineReady


class Begin(msgspec.Struct, frozen=True, tag=True):
    """Serve. First message to a server process."""

    engine_options: dict[str, Any]
    server_options: dict[str, Any]
    client: int
    """Its number at the engine"""
    ready: EngineReady
    inbox: str
    """zmq address of the engine"""
    tally: str
    """Path of the counts that all server processes share"""
    row: int
    """The one of the tally that is its own"""


class EngineDied(msgspec.Struct, frozen=True, tag=True):
    why: str


class EngineBack(msgspec.Struct, frozen=True, tag=True):
    """Another engine has taken the place of the one that died."""

    ready: EngineReady
    inbox: str


class Drain(msgspec.Struct, frozen=True, tag=True):
    """Take no new requests, finish those in flight, and end."""


class Stop(msgspec.Struct, frozen=True, tag=True):
    """End now."""


class Serving(msgspec.Struct, frozen=True, tag=True):
    """The server process accepts connections."""

    models: list[str]


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The server process cannot serve, and ends."""

    error: str


ToServer = Begin | EngineDied | EngineBack | Drain | Stop
FromServer = Serving | Failed

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(ToServer | FromServer)


class Channel:
    """One end of the pair."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, end: socket.socket) -> Channel:
        end.setblocking(False)
        return cls(*await asyncio.open_connection(sock=end))

    def send(self, message: ToServer | FromServer) -> None:
        """Never waits; to an end that is gone it says nothing."""
        if not self._writer.is_closing():
            frame = _encoder.encode(message)
            self._writer.write(len(frame).to_bytes(4, "little") + frame)

    async def receive(self) -> Any:
        """The next message. None: the other end is gone."""
        try:
            size = int.from_bytes(await self._reader.readexactly(4), "little")
            return _decoder.decode(await self._reader.readexactly(size))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    async def close(self) -> None:
        """After what was sent."""
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except ConnectionError:
            return
