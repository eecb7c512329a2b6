"""serve(): from the socket to the last answer. One server process over one engine process; several are supervisor.py's.

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
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any

import uvicorn

from core.config import EngineConfig
from core.engine.async_engine import AsyncEngine
from core.engine.remote import RemoteEngine
from core.errors import ConfigError
from core.garbage import spare_what_lives
from server import logs
from server.acceptor import Acceptor
from server.app import create_app
from server.config import ServerConfig
from server.connection import connection_class
from server.start_up import show_serving, show_start_up
from server.state import ServerState
from server.tally import ENGINE_RESTARTS, Tally

log = logging.getLogger("backplane.server")
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


SEND_BUFFER_BYTES = 128 * 1024
"""Of a connection, in the kernel. A client that does not read costs so much, and what it misses is merged."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
"""Between two attempts to start an engine that dies at once; each pause is twice the one before."""


class _Asgi(uvicorn.Server):
    """uvicorn without its own signal handlers, since ours drain first, and with our own acceptor."""

    handshake_timeout_s: float

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        config = self.config

        def make() -> asyncio.Protocol:
            return config.http_protocol_class(  # type: ignore[call-arg]
                config=config, server_state=self.server_state, app_state=self.lifespan.state
            )

        self.servers: list[Any] = [Acceptor(sock, make, config.ssl, self.handshake_timeout_s) for sock in sockets or []]
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        for server in self.servers:
            await server.wait_closed()


def bind_all(options: ServerConfig) -> list[socket.socket]:
    """A bound socket, not yet listening, for every server process; on a Unix socket one for all.

    Raises ConfigError that names the way out.
    """
    if options.uds:
        return [_bind_unix(options.uds)]
    if options.api_server_count == 1:
        return [_bind_tcp(options, options.port)]
    if options.port:
        # with SO_REUSEPORT a second server would be let in on the same port and get half of the connections
        _bind_tcp(options, options.port).close()
    first = _bind_tcp(options, options.port, shared=True)
    port = first.getsockname()[1]
    return [first, *(_bind_tcp(options, port, shared=True) for _ in range(options.api_server_count - 1))]


def _bind_tcp(options: ServerConfig, port: int, *, shared: bool = False) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    # inherited by every connection; the kernel would let it grow to megabytes for each client that does not read
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    try:
        sock.bind((options.host, port))
    except OSError as error:
        sock.close()
        why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be bound: {error.strerror or error}"
        raise ConfigError(f"{options.host}:{port} {why}; choose another --port (0: any free one)") from error
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


class Stopper:
    """Signals, or a supervisor's words in their place: the first drains, the second stops."""

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


async def keep_running(died: asyncio.Event, restart: Callable[[], Awaitable[None]]) -> None:
    """Call `restart` whenever the engine has died. A start that fails is tried again, after longer and longer."""
    pause_s = _FIRST_PAUSE_S
    while True:
        await died.wait()
        began = time.monotonic()
        try:
            await restart()
        except Exception as error:
            log.error("the engine could not be started again, next attempt in %g s: %s", pause_s, error)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            continue
        pause_s = _FIRST_PAUSE_S
        log.warning("the engine was started again in %.1f s", time.monotonic() - began)


async def serve_app(
    engine: RemoteEngine,
    options: ServerConfig,
    sock: socket.socket,
    stopper: Stopper,
    serving: Callable[[ServerState], None],
    tally: Tally | None = None,
) -> None:
    """HTTP over an engine that has started, until the stopper says so. `serving` is called when connections are accepted."""
    app = create_app(engine, options, tally)
    state: ServerState = app.state.server
    server = _Asgi(_uvicorn_config(app, options))
    server.handshake_timeout_s = options.head_timeout_s
    running = asyncio.ensure_future(server.serve(sockets=[sock]))
    stopping = asyncio.ensure_future(stopper.first.wait())
    try:
        while not server.started and not running.done():
            await asyncio.sleep(0.005)
        if not running.done():
            spare_what_lives()
            serving(state)
        await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            await stopper.drain(state)
            server.should_exit = True
            # a drained server has only idle connections left; streams that are left over end with the engine
            done, _ = await asyncio.wait({running}, timeout=1.0)
            if not done:
                server.force_exit = True
                await engine.shutdown()
        await running
    finally:
        stopping.cancel()


async def _serve(engine_config: EngineConfig, options: ServerConfig, sock: socket.socket) -> None:
    stopper = Stopper(options)
    stopper.install()
    engine = AsyncEngine(engine_config)
    starting = asyncio.ensure_future(engine.start())
    stopping = asyncio.ensure_future(stopper.first.wait())
    keeping: asyncio.Future[None] | None = None
    tally = Tally()

    async def restart() -> None:
        await engine.restart()
        tally.mine[ENGINE_RESTARTS] += 1

    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            return
        starting.result()
        show_start_up(engine.ready)
        if options.restart_engine:
            keeping = asyncio.ensure_future(keep_running(engine.died, restart))
        where = address(sock, options)
        await serve_app(engine, options, sock, stopper, lambda state: show_serving(state.served_names, where), tally)
    finally:
        stopping.cancel()
        if keeping is not None:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
        await engine.shutdown()


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
        http=connection_class(options.head_timeout_s),
    )


def run(work: Coroutine[Any, Any, None]) -> None:
    """The process's event loop, to the end of `work`."""
    try:
        import uvloop

        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    except ImportError:  # not on every platform
        runner = asyncio.Runner()
    with runner, contextlib.suppress(KeyboardInterrupt):
        runner.run(work)


def serve(engine_config: EngineConfig, server_config: ServerConfig) -> None:
    """Run to the end. Raises ConfigError, ModelError ... when it cannot start."""
    logs.set_up(server_config.log_format, server_config.log_level)
    sockets = bind_all(server_config)
    try:
        if server_config.api_server_count == 1:
            run(_serve(engine_config, server_config, sockets[0]))
        else:
            from server.supervisor import supervise

            run(supervise(engine_config, server_config, sockets))
    finally:
        for sock in sockets:
            sock.close()
        if server_config.uds:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(server_config.uds)
