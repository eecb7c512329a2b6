"""/health, /live, /ready, /version, /metrics: public, for those who watch."""

from __future__ import annotations

import time
from typing import Any

from litestar import Response, get
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

import core
from server.auth import PUBLIC
from server.state import ServerState


@get("/health", opt=PUBLIC)
async def health(server: ServerState) -> Response[Any]:
    """503 when the engine is dead, or has work and makes no progress."""
    engine = server.engine
    if engine.errored is not None:
        return Response({"status": "dead", "reason": engine.errored}, status_code=503)
    if engine.num_requests:
        stalled_s = time.monotonic() - max(engine.last_stats.last_step_time_s, engine.oldest_arrival_s)
        if stalled_s > server.options.stall_timeout_s:
            reason = f"there is work and no step has finished for {stalled_s:.0f} s"
            return Response({"status": "stalled", "reason": reason}, status_code=503)
    return Response({"status": "ok"})


@get("/live", opt=PUBLIC)
async def live() -> dict[str, str]:
    """The server process answers."""
    return {"status": "ok"}


@get("/ready", opt=PUBLIC)
async def ready(server: ServerState) -> Response[Any]:
    """Requests are taken now."""
    if server.draining or server.engine.errored is not None:
        return Response({"status": "draining" if server.draining else "dead"}, status_code=503)
    return Response({"status": "ok"})


@get("/version", opt=PUBLIC)
async def version() -> dict[str, str]:
    return {"version": core.__version__}


@get("/metrics", opt=PUBLIC)
async def metrics(server: ServerState) -> Response[Any]:
    return Response(generate_latest(server.metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})
