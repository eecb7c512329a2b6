"""Extension points of the server. Declared here, since core knows no HTTP; called once, when the app is made."""

from __future__ import annotations

from core.hookspecs import Register, hookspec


@hookspec
def register_routes(register: Register) -> None:
    """Routes of the HTTP server. Target: a list of Litestar route handlers, or a function of the ServerState that
    makes one. A route needs the API key unless its handler says `opt={"public": True}`."""
