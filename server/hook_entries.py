"""What plugins register through the server's own hooks. Imports no HTTP library: the command line asks too."""

from __future__ import annotations

import traceback
from importlib import metadata
from typing import Any

import pluggy

from core.errors import PluginError
from core.registry import Entry, Registry
from server import hookspecs

HOOKS = {"routes": "register_routes", "command": "register_commands"}
"""Kind -> hook. Core's kinds are in core/hookspecs.py."""


def hook_entries(registry: Registry, kind: str) -> list[Entry]:
    """What the loaded plugins registered. Raises PluginError for a hook that fails: what it gives would be missed."""
    name = HOOKS[kind]
    hook = getattr(registry.pm.hook, name, None)
    if hook is None or not hook.has_spec():
        try:
            registry.pm.add_hookspecs(hookspecs)
        except pluggy.PluginValidationError as error:
            raise PluginError(f"{name} takes one argument, `register`: {error}") from None
    found: list[Entry] = []
    for hook in sorted(getattr(registry.pm.hook, name).get_hookimpls(), key=lambda h: h.plugin_name):
        distribution, _, plugin = hook.plugin_name.partition(":")

        def register(name: str, target: str, *, _of: tuple[str, str] = (plugin, distribution), **info: Any) -> None:
            found.append(Entry(kind, name, target, *_of, _version(_of[1]), info))

        try:
            hook.function(register)
        except Exception as error:
            raise PluginError(
                f"{name} of plugin {plugin!r} ({distribution}) failed; mend it, or leave it out with "
                f"--disable-plugin {plugin}:\n{traceback.format_exc()}"
            ) from error
    return found


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "0"
