"""Starts the engine and the HTTP server, and stops them in the right order."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import signal
import time
from collections.abc import Iterator

import uvicorn

from core.config import EngineConfig
from core.engine.async_engine import AsyncEngine
from core.errors import ConfigError
from server.app import create_app
from server.config import ServerConfig
from server.state import ServerState

logger = logging.getLogger("backplane")


class _Server(uvicorn.Server):
    """uvicorn without signal handlers of its own: a drain comes before the stop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(engine_config: EngineConfig, options: ServerConfig) -> None:
    """Run until a signal. Raises what start-up failed with."""
    begun = time.perf_counter()
    keys = os.environ.get("BACKPLANE_API_KEY", "")
    if keys:
        options = dataclasses.replace(options, api_key=(*options.api_key, *filter(None, keys.split(","))))
    runner = asyncio.Runner(loop_factory=_loop_factory())
    with runner:
        runner.run(_serve(engine_config, options, begun))


def _loop_factory():  # type: ignore[no-untyped-def]
    try:
        import uvloop
    except ImportError:  # not on Windows
        return None
    return uvloop.new_event_loop


async def _serve(engine_config: EngineConfig, options: ServerConfig, begun: float) -> None:
    engine = AsyncEngine(engine_config)
    await engine.start()
    try:
        app = create_app(engine, options)
        log_start(engine, begun)
        server = _Server(
            uvicorn.Config(
                app, host=options.host, port=options.port, uds=options.uds, log_level=options.log_level,
                access_log=options.access_log, http="httptools", ws="none", lifespan="on", root_path=options.root_path,
                ssl_certfile=options.ssl_certfile, ssl_keyfile=options.ssl_keyfile, timeout_keep_alive=65, backlog=4096,
                timeout_graceful_shutdown=5, log_config=None,
            )
        )
        _install_signals(server, engine, app.state.server, options.drain_timeout_s)
        try:
            serving = asyncio.create_task(server.serve())
            while not server.started and not serving.done():
                await asyncio.sleep(0.01)
            if server.started:
                where = options.uds or f"{'https' if options.ssl_certfile else 'http'}://{options.host}:{_port(server)}"
                logger.info("ready in %.1f s: %s", time.perf_counter() - begun, where)
            await serving
        except SystemExit as error:  # how uvicorn says that it cannot listen
            raise ConfigError(
                f"cannot listen on {options.uds or f'{options.host}:{options.port}'}; is it in use? choose another --port"
            ) from error
    finally:
        await engine.shutdown()


def _port(server: uvicorn.Server) -> int:
    """The real one, when 0 was asked for."""
    for listener in server.servers:
        for socket in listener.sockets:
            name = socket.getsockname()
            if isinstance(name, tuple):
                return int(name[1])
    return server.config.port


def _install_signals(server: uvicorn.Server, engine: AsyncEngine, state: ServerState, drain_s: float) -> None:
    loop = asyncio.get_running_loop()
    tasks: list[asyncio.Task[None]] = []

    async def drain() -> None:
        if not await engine.drain(drain_s):
            logger.warning("%d requests were still running after %.0f s", engine.num_requests, drain_s)
        server.should_exit = True

    def stop() -> None:
        if state.draining:
            logger.warning("second signal: stopping now")
            server.should_exit = server.force_exit = True
            return
        state.draining = True
        logger.info("draining %d requests, %.0f s at most; a second signal stops at once", engine.num_requests, drain_s)
        tasks.append(loop.create_task(drain()))

    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop)


def log_start(engine: AsyncEngine, begun: float) -> None:
    """What "auto" became, where start-up time went, and the memory budget."""
    ready = engine.ready
    for name, choice in ready.choices.items():
        logger.info("%-18s %s", name, choice)
    phases = " | ".join(f"{name} {seconds:.2f} s" for name, seconds in ready.timeline)
    logger.info("%-18s %s", "timeline", phases)
    memory = ", ".join(f"{name.replace('_', ' ')} {size / 2**20:,.0f} MiB" for name, size in ready.memory.items())
    tokens = ready.num_blocks * ready.block_size
    logger.info("%-18s %s (%s blocks of %d: %s tokens)", "memory", memory, f"{ready.num_blocks:,}", ready.block_size, f"{tokens:,}")
