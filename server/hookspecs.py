"""Extension points of the server, declared here, since core knows no HTTP and no command; called once, at the start."""

from __future__ import annotations

from core.hookspecs import Register, hookspec


@hookspec
def register_routes(register: Register) -> None:
    """Routes of the HTTP server. Target: a list of Litestar route handlers, or a function of the ServerState that
    makes one. A route needs the API key unless its handler says `opt={"public": True}`."""


@hookspec
def register_commands(register: Register) -> None:
    """Commands of `engine`. Target: a click command, or a function that makes one; info: help="one line"."""
