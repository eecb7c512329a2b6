"""Several server processes over one engine process: started, watched, started again, stopped together.

The supervisor answers no request. On TCP every server process has a listening socket of its own on one port
(SO_REUSEPORT), and the kernel spreads connections over them; the sockets are kept here, so that what comes for a server
process that died waits for the next. On a Unix socket they share one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
from dataclasses import dataclass
from typing import Any

from core.config import EngineConfig
from core.engine.engine_process import EngineProcess, environment
from core.errors import BackplaneError
from core.messages import EngineStats, FromEngine, Leave, StepOutput
from server.config import ServerConfig
from server.control import Begin, Channel, Drain, EngineBack, EngineDied, Failed, Serving, Stop, ToServer
from server.launch import Stopper, address, keep_running
from server.start_up import show_serving, show_start_up
from server.tally import ENGINE_RESTARTS, SERVER_RESTARTS, Tally
from server.worker import server_options

log = logging.getLogger("backplane.server")

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
"""Before a server process that could not serve is started again; each pause is twice the one before."""
_GRACE_S = 5.0
"""Seconds that server processes get beyond the drain time."""


@dataclass(slots=True, eq=False)
class _Server:
    """One server process."""

    client: int
    process: asyncio.subprocess.Process
    channel: Channel


class Supervisor:
    def __init__(self, engine_config: EngineConfig, options: ServerConfig, sockets: list[socket.socket]) -> None:
        self._engine_config, self._options, self._sockets = engine_config, options, sockets
        self._engine = EngineProcess(engine_config, self._take, self._engine_died)
        self._engine_ready = asyncio.Event()
        self._engine_gone = asyncio.Event()
        self._why = ""
        """Why the engine is dead."""
        self._stats = EngineStats()
        self._tally_path = os.path.join(self._engine.folder, "tally")
        # its own row is the last
        Tally.create(self._tally_path, options.api_server_count + 1)
        self._tally = Tally(self._tally_path, options.api_server_count)
        self._servers: dict[int, _Server] = {}
        """By their place, from 0 on."""
        self._num_clients = 0
        self._serving: dict[int, list[str]] = {}
        """Places that have served, with the names of the models."""
        self._changed = asyncio.Event()
        self._stopping = False

    # ---- the engine

    def _take(self, message: FromEngine) -> None:
        if isinstance(message, StepOutput) and message.stats is not None:
            self._stats = message.stats

    def _engine_died(self, why: str) -> None:
        log.error(why)
        self._why = why
        self._stats = self._stats.at_rest()
        self._engine_gone.set()
        self._tell(EngineDied(why))

    async def _restart_engine(self) -> None:
        ready = await self._engine.spawn(self._stats)
        self._why = ""
        self._engine_gone.clear()
        self._tally.mine[ENGINE_RESTARTS] += 1
        self._tell(EngineBack(ready, self._engine.inbox))

    # ---- server processes

    def _tell(self, message: ToServer) -> None:
        for server in self._servers.values():
            server.channel.send(message)

    async def _spawn(self, place: int) -> _Server:
        self._num_clients += 1
        client = self._num_clients
        ours, theirs = socket.socketpair()
        listen = self._sockets[place % len(self._sockets)]
        descriptors = (listen.fileno(), theirs.fileno())
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "server.worker",
                *map(str, descriptors),
                pass_fds=descriptors,
                env=environment(),
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return _Server(client, process, await Channel.open(ours))

    async def _keep(self, place: int) -> None:
        """The server process of one place, again and again. Raises BackplaneError if the first one cannot serve."""
        pause_s = _FIRST_PAUSE_S
        while not self._stopping:
            # it imports what it needs while the engine loads
            server = await self._spawn(place)
            error, served = "", False
            try:
                await self._engine_ready.wait()
                server.channel.send(self._begin(server.client, place))
                self._servers[place] = server
                if self._why:
                    server.channel.send(EngineDied(self._why))
                if self._stopping:
                    server.channel.send(Stop())
                while (message := await server.channel.receive()) is not None:
                    if isinstance(message, Serving):
                        served = True
                        pause_s = _FIRST_PAUSE_S
                        self._serving[place] = message.models
                        self._changed.set()
                    elif isinstance(message, Failed):
                        error = message.error
                status = await server.process.wait()
            finally:
                self._servers.pop(place, None)
                with contextlib.suppress(ProcessLookupError):
                    if server.process.returncode is None:
                        server.process.kill()
                await server.channel.close()
                # what it had in flight has nobody to go to
                if self._engine_ready.is_set() and not self._why:
                    self._engine.link.send(Leave(server.client))
            if self._stopping:
                return
            what = f"server process {place} (pid {server.process.pid}) ended with status {status}"
            if error:
                what += f": {error}"
            if place not in self._serving:
                raise BackplaneError(what)
            log.error("%s; its requests are lost, and it is started again", what)
            self._tally.mine[SERVER_RESTARTS] += 1
            if not served:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _begin(self, client: int, place: int) -> Begin:
        options = {k: v for k, v in self._engine_config.options().items() if v is not None}
        ready, inbox = self._engine.ready, self._engine.inbox
        return Begin(options, server_options(self._options), client, ready, inbox, self._tally_path, place)

    # ---- all of it

    async def run(self) -> None:
        """From the first process to the last. Raises what the engine or a server process cannot start with."""
        stopper = Stopper(self._options)
        stopper.install()
        stopping = asyncio.ensure_future(stopper.first.wait())
        count = self._options.api_server_count
        keepers = [asyncio.create_task(self._keep(place)) for place in range(count)]
        working = asyncio.gather(*keepers)
        starting = asyncio.ensure_future(self._start(count))
        keeping: asyncio.Future[None] | None = None
        try:
            first: set[asyncio.Future[Any]] = {starting, working, stopping}
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                starting.cancel()
                await asyncio.gather(starting, return_exceptions=True)
                if working.done():
                    working.result()
                return
            starting.result()
            if self._options.restart_engine:
                keeping = asyncio.ensure_future(keep_running(self._engine_gone, self._restart_engine))
            await asyncio.wait(first - {starting}, return_when=asyncio.FIRST_COMPLETED)
            self._stopping = True
            if not stopper.first.is_set():
                working.result()
            await self._drain(stopper, working)
        finally:
            self._stopping = True
            for task in (stopping, keeping):
                if task is not None:
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
            # whoever is left is killed
            working.cancel()
            await asyncio.gather(*keepers, return_exceptions=True)
            await asyncio.gather(working, return_exceptions=True)
            await self._engine.stop()

    async def _start(self, count: int) -> None:
        ready = await self._engine.spawn()
        show_start_up(ready)
        self._engine_ready.set()
        while len(self._serving) < count:
            await self._changed.wait()
            self._changed.clear()
        log.info("%d server processes share the engine", count)
        show_serving(self._serving[0], address(self._sockets[0], self._options))

    async def _drain(self, stopper: Stopper, working: asyncio.Future[list[None]]) -> None:
        """Server processes finish what they have, at most so long, or until the second signal."""
        for sock in self._sockets:
            sock.close()  # the server processes' own are the last
        self._tell(Drain())
        second = asyncio.ensure_future(stopper.second.wait())
        limit_s = self._options.drain_timeout_s + _GRACE_S
        either: set[asyncio.Future[Any]] = {working, second}
        await asyncio.wait(either, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        second.cancel()
        if not working.done():
            self._tell(Stop())
            await asyncio.wait({working}, timeout=_GRACE_S)


async def supervise(engine_config: EngineConfig, options: ServerConfig, sockets: list[socket.socket]) -> None:
    """serve() with several server processes."""
    await Supervisor(engine_config, options, sockets).run()
