"""serve(): one server process over one engine process, from the socket to the last answer.

The socket is bound before the model loads, so that a taken port is known at once. SIGTERM and SIGINT drain: new
requests get 503, those in flight may finish within drain_timeout_s; a second signal stops at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import ssl
import stat
import time
from collections.abc import Iterator
from typing import Any

import uvicorn

from core.config import EngineConfig
from core.engine.async_engine import AsyncEngine
from core.errors import ConfigError
from server import logs
from server.app import create_app
from server.config import ServerConfig
from server.connection import connection_class
from server.start_up import show_serving, show_start_up
from server.state import ServerState

log = logging.getLogger("backplane.server")
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


SEND_BUFFER_BYTES = 128 * 1024
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
"""Between two attempts to start an engine that dies at once; each pause is twice the one before."""


class _Asgi(uvicorn.Server):
    """uvicorn without its own signal handlers: ours drain first."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bind(options: ServerConfig) -> socket.socket:
    """The bound socket, not yet listening. Raises ConfigError that names the way out."""
    if options.uds:
        return _bind_unix(options.uds)
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # inherited by every connection; the kernel would let it grow to megabytes for each client that does not read
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    try:
        sock.bind((options.host, options.port))
    except OSError as error:
        sock.close()
        why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be bound: {error.strerror or error}"
        raise ConfigError(f"{options.host}:{options.port} {why}; choose another --port (0: any free one)") from error
    sock.setblocking(False)
    return sock


def _bind_unix(path: str) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise ConfigError(f"uds={path!r} exists and is no socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            if probe.connect_ex(path) == 0:
                raise ConfigError(f"uds={path!r} is in use by another server")
        os.unlink(path)  # left behind by a server that was killed
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(path)
    except OSError as error:
        sock.close()
        raise ConfigError(f"uds={path!r} cannot be bound: {error.strerror or error}") from error
    sock.setblocking(False)
    return sock


def address(sock: socket.socket, options: ServerConfig) -> str:
    if options.uds:
        return f"unix:{options.uds}"
    host, port = sock.getsockname()[:2]
    scheme = "https" if options.ssl_certfile else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


class _Stopper:
    """Signals: the first drains, the second stops."""

    def __init__(self, options: ServerConfig) -> None:
        self._options = options
        self.first = asyncio.Event()
        self.second = asyncio.Event()

    def install(self) -> None:
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._signal, number)

    def _signal(self, number: int) -> None:
        if self.first.is_set():
            log.warning("%s again: stopping now", signal.Signals(number).name)
            self.second.set()
        else:
            self.first.set()

    async def drain(self, state: ServerState) -> None:
        """Wait for requests in flight, the drain time, or the second signal."""
        state.draining = True
        if not state.accepted:
            return
        log.info("draining: %d requests in flight, at most %g s", state.accepted, self._options.drain_timeout_s)

        async def emptied() -> None:
            while state.accepted:
                await asyncio.sleep(0.02)

        waits = [asyncio.ensure_future(emptied()), asyncio.ensure_future(self.second.wait())]
        await asyncio.wait(waits, timeout=self._options.drain_timeout_s, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if state.accepted:
            log.warning("%d requests did not finish in time and are aborted", state.accepted)


async def _keep_running(engine: AsyncEngine) -> None:
    """Start the engine process again whenever it dies. A start that fails is tried again, after longer and longer."""
    pause_s = _FIRST_PAUSE_S
    while True:
        await engine.died.wait()
        began = time.monotonic()
        try:
            await engine.restart()
        except Exception as error:
            log.error("the engine could not be started again, next attempt in %g s: %s", pause_s, error)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            continue
        pause_s = _FIRST_PAUSE_S
        log.warning("the engine was started again in %.1f s", time.monotonic() - began)


async def _serve(engine_config: EngineConfig, options: ServerConfig, sock: socket.socket) -> None:
    stopper = _Stopper(options)
    stopper.install()
    engine = AsyncEngine(engine_config)
    starting = asyncio.ensure_future(engine.start())
    stopping = asyncio.ensure_future(stopper.first.wait())
    keeping: asyncio.Future[None] | None = None
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            return
        starting.result()
        show_start_up(engine.ready)
        app = create_app(engine, options)
        state: ServerState = app.state.server
        if options.restart_engine:
            keeping = asyncio.ensure_future(_keep_running(engine))
        server = _Asgi(_uvicorn_config(app, options))
        serving = asyncio.ensure_future(server.serve(sockets=[sock]))
        while not server.started and not serving.done():
            await asyncio.sleep(0.005)
        show_serving(state.served_names, address(sock, options))
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not serving.done():
            await stopper.drain(state)
            server.should_exit = True
            # a drained server has only idle connections left; streams that are left over end with the engine
            done, _ = await asyncio.wait({serving}, timeout=1.0)
            if not done:
                server.force_exit = True
                await engine.shutdown()
        await serving
    finally:
        stopping.cancel()
        if keeping is not None:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
        await engine.shutdown()
        sock.close()
        if options.uds:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(options.uds)


def under(root_path: str, app: Any) -> Any:
    """The app below a prefix, whether the proxy left it in the path or took it away. uvicorn's own option knows one."""

    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            root = root_path.rstrip("/")
            inside = scope["path"] == root or scope["path"].startswith(f"{root}/")
            scope = {**scope, "root_path": root if inside else ""}
        await app(scope, receive, send)

    return asgi


def _uvicorn_config(app: Any, options: ServerConfig) -> uvicorn.Config:
    return uvicorn.Config(
        under(options.root_path, app) if options.root_path else app,
        log_config=None,
        access_log=False,
        ssl_certfile=options.ssl_certfile,
        ssl_keyfile=options.ssl_keyfile,
        ssl_ca_certs=options.ssl_ca_certs,
        ssl_cert_reqs=ssl.CERT_REQUIRED if options.ssl_ca_certs else ssl.CERT_NONE,
        timeout_keep_alive=options.keep_alive_timeout_s,
        timeout_graceful_shutdown=2,
        lifespan="off",
        ws="none",
        server_header=False,
        backlog=4096,
        http=connection_class(options.head_timeout_s),
    )


def serve(engine_config: EngineConfig, server_config: ServerConfig) -> None:
    """Run to the end. Raises ConfigError, ModelError ... when it cannot start."""
    logs.set_up(server_config.log_format, server_config.log_level)
    sock = bind(server_config)
    try:
        import uvloop

        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    except ImportError:  # not on every platform
        runner = asyncio.Runner()
    try:
        with runner:
            runner.run(_serve(engine_config, server_config, sock))
    except KeyboardInterrupt:
        pass
    finally:
        sock.close()
