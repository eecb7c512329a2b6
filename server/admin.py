"""Administration routes: they need the admin key, and are off when there are keys but no admin key."""

from __future__ import annotations

from typing import Any

from litestar import Response, get, post
from litestar.handlers.base import BaseRouteHandler

from core.errors import BackplaneError, EngineDeadError
from server import openapi
from server.errors import ApiError, encode
from server.state import HttpRequest, ServerState

PROFILE_TIMEOUT_S = 300.0
"""A long trace takes this long to write."""


@post(
    "/reset_prefix_cache",
    opt={"admin": True},
    status_code=200,
    operation_class=openapi.operation(answer=openapi.Status),
)
async def reset_prefix_cache(request: HttpRequest) -> Response[bytes]:
    """Forget what the prefix cache knows. Running requests keep their blocks."""
    state: ServerState = request.app.state.server
    state.check_open()
    await state.engine.call("reset_prefix_cache")
    return Response(encode({"status": "ok"}), media_type="application/json")


@get("/server_info", opt={"admin": True}, operation_class=openapi.operation(answer=dict))
async def server_info(request: HttpRequest) -> Response[bytes]:
    """What was chosen and why, the plugins in use, memory and the start-up's phases."""
    state: ServerState = request.app.state.server
    ready = state.engine.ready
    plugins = [
        {"kind": e.kind, "name": e.name, "distribution": e.distribution, "version": e.version, "state": e.state}
        for e in state.engine.registry.entries
    ]
    info: dict[str, Any] = {
        "models": list(state.served_names),
        "model_path": ready.model_path,
        "max_model_len": ready.max_model_len,
        "num_blocks": ready.num_blocks,
        "block_size": ready.block_size,
        "choices": ready.choices,
        "memory_bytes": ready.memory,
        "start_up_s": dict(ready.timeline),
        "plugins": plugins,
        "plugins_in_use": ready.plugins,
    }
    return Response(encode(info), media_type="application/json")


@post("/start_profile", opt={"admin": True}, status_code=200, operation_class=openapi.operation(answer=dict))
async def start_profile(request: HttpRequest) -> Response[bytes]:
    """Begin a trace of the engine's steps. The server must have been started with --profile-dir."""
    return await _profile(request, "start_profile")


@post("/stop_profile", opt={"admin": True}, status_code=200, operation_class=openapi.operation(answer=dict))
async def stop_profile(request: HttpRequest) -> Response[bytes]:
    """End the trace and write it: {"trace": its path on the server}. Steps wait while it is written."""
    return await _profile(request, "stop_profile")


async def _profile(request: HttpRequest, method: str) -> Response[bytes]:
    state: ServerState = request.app.state.server
    state.check_open()
    try:
        path = await state.engine.call(method, timeout_s=PROFILE_TIMEOUT_S)
    except EngineDeadError:
        raise
    except BackplaneError as error:  # no folder, none or another one running, a full disk: the message says which
        raise ApiError(str(error), code="profile_failed") from None
    return Response(encode({"status": "ok", "trace": path}), media_type="application/json")


ROUTES: list[BaseRouteHandler] = [reset_prefix_cache, server_info, start_profile, stop_profile]
