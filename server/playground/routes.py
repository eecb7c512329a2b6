"""Routes of the playground: the page and its files, which are public, and the engine's state, which needs the key."""

from __future__ import annotations

import hashlib
from importlib import resources
from typing import Any

from litestar import Response, get
from litestar.handlers.base import BaseRouteHandler

from server.config import ServerConfig
from server.errors import ApiError, encode
from server.openapi import operation
from server.playground.watch import Watch
from server.state import HttpRequest, ServerState
from server.streaming import start

_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
_HEADERS = {
    # everything comes from this server, and nothing is written into the page as markup
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def _read() -> dict[str, tuple[bytes, str]]:
    """name -> (content, ETag) of the page's files."""
    found = {}
    for entry in resources.files("server.playground").iterdir():
        if entry.name[entry.name.rfind(".") :] in _TYPES:
            content = entry.read_bytes()
            found[entry.name] = (content, f'"{hashlib.sha256(content).hexdigest()[:24]}"')
    return found


_files = _read()


def _file(request: HttpRequest, name: str) -> Response[bytes]:
    if name not in _files:
        raise ApiError(f"no route GET {request.url.path}", status=404, code="not_found")
    content, tag = _files[name]
    headers = {**_HEADERS, "ETag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(b"", status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=_TYPES[name[name.rfind(".") :]])


@get("/", opt={"public": True}, include_in_schema=False)
async def page(request: HttpRequest) -> Response[bytes]:
    return _file(request, "index.html")


@get("/playground/{name:str}", opt={"public": True}, include_in_schema=False)
async def file(request: HttpRequest, name: str) -> Response[bytes]:
    return _file(request, name)


def _watch(request: HttpRequest) -> Watch:
    """The app's one, made when somebody first looks."""
    app_state: Any = request.app.state
    state: ServerState = app_state.server
    if "watch" not in app_state:
        app_state.watch = Watch(state)
    return app_state.watch  # type: ignore[no-any-return]


@get("/backplane/state", operation_class=operation(answer=dict))
async def engine_state(request: HttpRequest) -> Response[bytes]:
    """The engine now: counters, running sequences, the block pool, latencies, and how it was set up."""
    return Response(encode(await _watch(request).snapshot()), media_type="application/json")


@get("/backplane/events", include_in_schema=False)
async def engine_events(request: HttpRequest) -> Response[Any]:
    """The same as server-sent events, four a second."""
    state: ServerState = request.app.state.server
    if state.draining:  # a dead engine is shown as such, a server that goes is left
        state.check_open()
    return await start(request, _watch(request).events())


def routes(options: ServerConfig) -> list[BaseRouteHandler]:
    """What the app registers."""
    return [page, file, engine_state, engine_events] if options.playground else []
