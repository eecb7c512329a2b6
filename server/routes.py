"""Routes that plugins bring. All of them are served: a plugin that should not be is left out by --disable-plugin.

Knows nothing of what a route does; of two that want one path, it says who they are.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable

from litestar.handlers import HTTPRouteHandler
from litestar.handlers.base import BaseRouteHandler

from core.errors import PluginError
from core.registry import Registry, load_target
from server.hook_entries import hook_entries
from server.state import ServerState


def plugin_routes(registry: Registry, state: ServerState, taken: Iterable[BaseRouteHandler]) -> list[BaseRouteHandler]:
    """Handlers of all plugins, checked against each other and against `taken`, our own."""
    owners: dict[tuple[str, str], str] = {}
    for handler in taken:
        owners |= dict.fromkeys(_places(handler), "the server itself")
    handlers: list[BaseRouteHandler] = []
    for entry in hook_entries(registry, "routes"):
        out = f"--disable-plugin {entry.plugin}"
        given = load_target(entry)
        if callable(given) and not isinstance(given, BaseRouteHandler):
            try:
                given = given(state)
            except Exception as error:
                raise PluginError(
                    f"routes {entry.name!r} of {entry.distribution} cannot be made; mend it, or {out}:\n"
                    f"{traceback.format_exc()}"
                ) from error
        if not isinstance(given, list | tuple) or not all(isinstance(h, HTTPRouteHandler) for h in given):
            raise PluginError(
                f"routes {entry.name!r} of {entry.distribution}: {entry.target!r} is no list of Litestar HTTP route "
                f"handlers, nor a function that returns one; mend it, or {out}"
            )
        entry.state = "selected"
        for handler in given:
            for place in _places(handler):
                if place in owners:
                    raise PluginError(
                        f"{' '.join(place)} is registered by {owners[place]} and by routes {entry.name!r} of "
                        f"{entry.distribution}; leave one out, e.g. with {out}"
                    )
                owners[place] = f"routes {entry.name!r} of {entry.distribution}"
        handlers += given
    return handlers


def _places(handler: BaseRouteHandler) -> list[tuple[str, str]]:
    methods = handler.http_methods if isinstance(handler, HTTPRouteHandler) else ("GET",)
    return [(str(m), "/" + path.strip("/")) for m in sorted(methods) for path in sorted(handler.paths)]
