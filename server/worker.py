"""One of several server processes: `python -m server.worker LISTEN_FD CONTROL_FD`. Its supervisor says what to serve.

Signals are the supervisor's: a terminal or a container manager sends them to every process, and only one must decide.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import socket
import sys
from typing import Any

from core.config import EngineConfig
from core.engine.attached_engine import AttachedEngine
from server import logs
from server.config import ServerConfig
from server.control import Begin, Channel, Drain, EngineBack, EngineDied, Failed, Serving, Stop
from server.launch import Stopper, run, serve_app
from server.tally import Tally


def server_options(config: ServerConfig) -> dict[str, Any]:
    return dataclasses.asdict(config)


def _config(options: dict[str, Any]) -> ServerConfig:
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    return ServerConfig(**given)


async def _listen(channel: Channel, engine: AttachedEngine, stopper: Stopper) -> None:
    while (message := await channel.receive()) is not None:
        match message:
            case EngineDied():
                engine.engine_died(message.why)
            case EngineBack():
                engine.attach(message.ready, message.inbox)
            case Drain():
                stopper.first.set()
            case Stop():
                stopper.first.set()
                stopper.second.set()
    os._exit(1)  # the supervisor is gone, and the engine with it


async def _work(sock: socket.socket, control: socket.socket) -> None:
    channel = await Channel.open(control)
    begin = await channel.receive()
    if not isinstance(begin, Begin):
        return
    options = _config(begin.server_options)
    logs.set_up(options.log_format, options.log_level)
    engine: AttachedEngine | None = None
    listening: asyncio.Task[None] | None = None
    try:
        stopper = Stopper(options)
        engine = AttachedEngine(EngineConfig.from_options(**begin.engine_options), begin.client)
        engine.attach(begin.ready, begin.inbox)
        listening = asyncio.create_task(_listen(channel, engine, stopper))
        tally = Tally(begin.tally, begin.row)
        await serve_app(
            engine, options, sock, stopper, lambda state: channel.send(Serving([*state.served_names])), tally
        )
    except Exception as error:
        channel.send(Failed(f"{type(error).__name__}: {error}"))
        raise
    finally:
        if listening is not None:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
        if engine is not None:
            await engine.shutdown()
        await channel.close()


def main() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    listen, control = (socket.socket(fileno=int(fd)) for fd in sys.argv[1:3])
    run(_work(listen, control))


if __name__ == "__main__":
    main()
