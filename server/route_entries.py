"""What plugins register as routes of the HTTP server. Imports no HTTP library: `engine plugins list` asks too."""

from __future__ import annotations

import traceback
from importlib import metadata
from typing import Any

import pluggy

from core.errors import PluginError
from core.registry import Entry, Registry
from server import hookspecs

KIND = "routes"


def route_entries(registry: Registry) -> list[Entry]:
    """What the loaded plugins registered. Raises PluginError for a hook that fails: its routes would be missed."""
    hook = getattr(registry.pm.hook, "register_routes", None)
    if hook is None or not hook.has_spec():
        try:
            registry.pm.add_hookspecs(hookspecs)
        except pluggy.PluginValidationError as error:
            raise PluginError(f"register_routes takes one argument, `register`: {error}") from None
    found: list[Entry] = []
    for hook in sorted(registry.pm.hook.register_routes.get_hookimpls(), key=lambda h: h.plugin_name):
        distribution, _, plugin = hook.plugin_name.partition(":")

        def register(name: str, target: str, *, _of: tuple[str, str] = (plugin, distribution), **info: Any) -> None:
            found.append(Entry(KIND, name, target, *_of, _version(_of[1]), info))

        try:
            hook.function(register)
        except Exception as error:
            raise PluginError(
                f"register_routes of plugin {plugin!r} ({distribution}) failed; mend it, or leave it out with "
                f"--disable-plugin {plugin}:\n{traceback.format_exc()}"
            ) from error
    return found


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "0"
