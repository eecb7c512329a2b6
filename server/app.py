"""create_app: the routes, and what holds for all of them. Knows nothing of processes or sockets (launch.py does)."""

from __future__ import annotations

import logging
import time
from importlib import metadata
from typing import TYPE_CHECKING, Any

from litestar import Litestar, MediaType, Request, Response, get, head
from litestar.config.cors import CORSConfig
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.handlers.base import BaseRouteHandler

from server import admin, errors, openapi, tracing
from server.auth import Connection, Gate
from server.config import ServerConfig
from server.errors import ApiError, encode
from server.limits import Limits, counting
from server.metrics import CONTENT_TYPE
from server.openai.chat import chat_completions
from server.openai.completions import completions
from server.openai.embeddings import embeddings
from server.openai.models import list_models, show_model
from server.openai.parsers import Parsers
from server.openai.responses import ROUTES as RESPONSES
from server.openai.scores import ROUTES as SCORES
from server.openai.tokenize import detokenize, tokenize
from server.playground import routes as playground
from server.routes import plugin_routes
from server.state import HttpRequest, ServerState, request_id

if TYPE_CHECKING:
    from core.engine.remote import RemoteEngine
    from server.tally import Tally

access_log = logging.getLogger("backplane.access")


def version() -> str:
    try:
        return metadata.version("backplane")
    except metadata.PackageNotFoundError:
        return "0.0.0"


def _json(value: Any) -> Response[bytes]:
    return Response(encode(value), media_type="application/json")


def check_health(state: ServerState) -> None:
    """Raises ApiError 503 when no answer can be expected."""
    if state.engine.errored:
        raise ApiError(f"the engine is dead: {state.engine.errored}", status=503, code="engine_dead")
    stalled_s = state.progress.stalled_s()
    if stalled_s is not None:
        raise ApiError(
            f"the engine has {state.engine.num_requests} requests and finished no step for {stalled_s:.0f} s",
            status=503,
            code="engine_stalled",
        )


@get("/health", opt={"public": True}, operation_class=openapi.operation(answer=openapi.Status))
async def health(request: HttpRequest) -> Response[bytes]:
    check_health(request.app.state.server)
    return _json({"status": "ok"})


@get("/live", opt={"public": True}, operation_class=openapi.operation(answer=openapi.Status))
async def live() -> Response[bytes]:
    """The server process answers; nothing is said of the engine."""
    return _json({"status": "ok"})


@get("/ready", opt={"public": True}, operation_class=openapi.operation(answer=openapi.Status))
async def ready(request: HttpRequest) -> Response[bytes]:
    """New requests are taken."""
    state: ServerState = request.app.state.server
    state.check_open()
    check_health(state)
    return _json({"status": "ok"})


@head(["/health", "/ready"], opt={"public": True}, include_in_schema=False)
async def health_head(request: HttpRequest) -> None:
    state: ServerState = request.app.state.server
    if request.url.path.endswith("/ready"):
        state.check_open()
    check_health(state)


@head("/live", opt={"public": True}, include_in_schema=False)
async def live_head() -> None: ...


@get("/version", opt={"public": True}, operation_class=openapi.operation(answer=dict))
async def show_version() -> Response[bytes]:
    return _json({"version": version()})


@get("/ping", opt={"public": True}, operation_class=openapi.operation(answer=openapi.Status))
async def ping(request: HttpRequest) -> Response[bytes]:
    check_health(request.app.state.server)
    return _json({"status": "ok"})


@get("/metrics", opt={"public": True}, operation_class=openapi.operation(text=True))
async def metrics(request: HttpRequest) -> Response[bytes]:
    state: ServerState = request.app.state.server
    stats = await state.fresh_stats()
    if stats is not None:
        state.metrics.stats(stats)
    return Response(state.metrics.exposition(), headers={"content-type": CONTENT_TYPE}, media_type=MediaType.TEXT)


ROUTES: list[BaseRouteHandler] = [
    # GET before HEAD: Litestar answers OPTIONS with the methods of the first
    health,
    live,
    ready,
    health_head,
    live_head,
    show_version,
    ping,
    metrics,
    list_models,
    show_model,
    chat_completions,
    completions,
    *RESPONSES,
    embeddings,
    *SCORES,
    tokenize,
    detokenize,
    *admin.ROUTES,
]


def create_app(engine: RemoteEngine, options: ServerConfig | None = None, tally: Tally | None = None) -> Litestar:
    """The app over an engine that has started. `tally`: what is counted together with other server processes."""
    options = options or ServerConfig()
    server = ServerState(engine, options, tally)

    async def before_send(message: Any, scope: Any) -> None:
        if message["type"] != "http.response.start":
            return
        known = scope.get("backplane_request_id") or request_id(Request(scope))
        message["headers"] = [*message.get("headers", ()), (b"x-request-id", known.encode())]
        if options.access_log:
            access_log.info(
                "request",
                extra={
                    "fields": {
                        "method": scope["method"],
                        "path": scope["path"],
                        "status": message["status"],
                        "request_id": known,
                        "client": (scope.get("client") or ["-"])[0],
                        "ms": round((time.monotonic() - scope.get("backplane_began_s", time.monotonic())) * 1000, 1),
                    }
                },
            )

    cors = None
    if options.allowed_origins:
        cors = CORSConfig(
            allow_origins=list(options.allowed_origins),
            allow_credentials=options.allow_credentials,
            allow_methods=list(options.allowed_methods),  # type: ignore[arg-type]
            allow_headers=list(options.allowed_headers),
            expose_headers=["x-request-id", "retry-after"],
        )
    gate, limits = Gate(options), Limits(options)

    async def admit(connection: Connection, handler: BaseRouteHandler) -> None:
        """One guard for all that has to be asked: Litestar copies the handler for each."""
        scope: Any = connection.scope
        scope["backplane_began_s"] = time.monotonic()
        tracing.scope.set(scope)
        await gate(connection, handler)
        await limits(connection, handler)

    ours = [*ROUTES, *playground.routes(options), *([openapi.document] if options.openapi else ())]
    handlers = [*ours, *plugin_routes(engine.registry, server, ours)]
    return Litestar(
        route_handlers=handlers,
        guards=[admit],
        middleware=[counting(server)],
        before_send=[before_send],
        exception_handlers={Exception: errors.handle, HTTPException: errors.handle},
        request_max_body_size=options.max_body_bytes,
        cors_config=cors,
        openapi_config=openapi.config(version(), keys=gate.has_keys) if options.openapi else None,
        logging_config=None,
        state=State({"server": server, "parsers": Parsers(server)}),
        debug=False,
    )
