"""The engine process as its parent sees it: started, watched, stopped, started again. The parent is client 0."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import msgspec
import zmq

from core import errors
from core.config import EngineConfig
from core.engine.link import Link
from core.errors import EngineDeadError
from core.messages import EngineFailed, EngineReady, EngineStats, FromEngine, Shutdown

STOP_S = 5.0
"""Seconds that an engine process gets to stop by itself."""


class EngineProcess:
    """`take` gets the messages of a running engine for client 0. `died(why)` is called once for every one that is gone,
    unless `stop` was called."""

    def __init__(self, config: EngineConfig, take: Callable[[FromEngine], None], died: Callable[[str], None]) -> None:
        self._config, self._take, self._died = config, take, died
        self.folder = tempfile.mkdtemp(prefix="backplane-")
        """For the sockets of all clients."""
        self.context: zmq.Context = zmq.Context()
        self.link: Link
        self.ready: EngineReady
        self.inbox = ""
        """Where the engine that runs now listens."""
        self._number = 0
        self._process: asyncio.subprocess.Process | None = None
        self._watching: asyncio.Task[None] | None = None
        self._running = False
        self._stopping = False

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return None if self._process is None else self._process.returncode

    async def spawn(self, past: EngineStats | None = None) -> EngineReady:
        """Start one and wait until it is ready; one that died is cleared away first. Raises what it failed with.

        `past`: the counters of the one before.
        """
        await self._clear()
        self._number += 1
        self.inbox = f"ipc://{self.folder}/inbox{self._number}"
        outbox = f"ipc://{self.folder}/outbox{self._number}"
        first: asyncio.Future[FromEngine] = asyncio.get_running_loop().create_future()

        def take(message: FromEngine) -> None:
            if not first.done():
                first.set_result(message)
            elif isinstance(message, EngineFailed):
                self._gone(f"the engine failed: {message.kind}: {message.error}")
            else:
                self._take(message)

        self.link = Link(self.context, outbox, take, self._gone)
        options = {k: v for k, v in self._config.options().items() if v is not None}
        setup = msgspec.msgpack.encode({"options": options, "inbox": self.inbox, "outbox": outbox, "past": past})
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "core.engine.process", stdin=asyncio.subprocess.PIPE, env=environment()
        )
        death = asyncio.ensure_future(self._process.wait())
        either: set[asyncio.Future[Any]] = {death, first}
        try:
            assert self._process.stdin is not None
            with contextlib.suppress(ConnectionError):  # it is dead already, and says so below
                self._process.stdin.write(len(setup).to_bytes(8, "little") + setup)
                await self._process.stdin.drain()
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not first.done():
                # its last words may still be on their way
                await asyncio.wait({first}, timeout=0.5)
            if not first.done():
                raise EngineDeadError(f"the engine process ended with status {death.result()} before it was ready")
            message = first.result()
            if isinstance(message, EngineFailed):
                await death
                raise _as_exception(message)
            assert isinstance(message, EngineReady)
        except BaseException:
            death.cancel()
            await self._clear()
            raise
        self.ready = message
        self.link.connect(self.inbox)
        self._running = True
        self._watching = asyncio.create_task(self._watch(death))
        return message

    async def _watch(self, death: asyncio.Future[int]) -> None:
        status = await death
        await asyncio.sleep(0.05)  # an EngineFailed that is on its way says more
        self._gone(f"the engine process ended with status {status}")

    def _gone(self, why: str) -> None:
        if self._running and not self._stopping:
            self._running = False
            self._died(why)

    async def _clear(self) -> None:
        """No process, no sockets, no task."""
        self._running = False
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
            self._watching = None
        if self._process is not None:
            if self._process.returncode is None:
                self._process.kill()
                await self._process.wait()
            if self._process.stdin is not None:
                self._process.stdin.close()
        if self._number:
            self.link.close()

    async def stop(self) -> None:
        """Ask it to end, then make it. Safe to call twice."""
        if self._stopping:
            return
        self._stopping = True
        if self._running and self._process is not None and self._process.returncode is None:
            self.link.send(Shutdown())
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._process.wait(), STOP_S)
        await self._clear()
        self.context.term()
        shutil.rmtree(self.folder, ignore_errors=True)


def environment() -> dict[str, str]:
    """A child must find the packages that we were imported from, wherever that was."""
    paths = [p or os.getcwd() for p in sys.path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}


def _as_exception(message: EngineFailed) -> Exception:
    kind = getattr(errors, message.kind, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        return kind(message.error)
    return EngineDeadError(f"the engine could not start: {message.kind}: {message.error}")
