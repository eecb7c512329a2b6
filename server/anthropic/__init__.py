"""Anthropic's Messages API, a plugin of routes: `--disable-plugin anthropic` leaves it out."""

from core import hookimpl


@hookimpl
def register_routes(register):  # type: ignore[no-untyped-def]
    register("anthropic", "server.anthropic.messages:ROUTES")
