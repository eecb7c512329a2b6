"""Commands of `engine` that plugins bring: found when somebody calls one, or asks for help."""

from __future__ import annotations

from collections.abc import Collection

import click

from core.errors import PluginError
from core.registry import Entry, Registry, load_target


def plugin_commands(taken: Collection[str]) -> dict[str, Entry]:
    """Name -> entry. A plugin that is broken, or wants a name that is taken, is warned of and left out."""
    from core import hookspecs as core_hooks
    from core.config import PluginConfig
    from core.registry import load_registry
    from server import hookspecs as server_hooks
    from server.hook_entries import hook_entries

    registry: Registry = load_registry(PluginConfig(), (core_hooks, server_hooks))
    try:
        entries = hook_entries(registry, "command")
    except PluginError as error:
        _warn(str(error))
        return {}
    found: dict[str, Entry] = {}
    for entry in entries:
        if entry.name in taken:
            _warn(
                f"command {entry.name!r} of {entry.distribution} is left out: `engine {entry.name}` is Backplane's own"
            )
        elif other := found.get(entry.name):
            _warn(f"command {entry.name!r} is of {other.distribution}; that of {entry.distribution} is left out")
        else:
            found[entry.name] = entry
    return found


def load_command(entry: Entry) -> click.Command:
    """Raises PluginError, with the plugin's own traceback, if it does not import."""
    target = load_target(entry)
    command = target if isinstance(target, click.Command) else target() if callable(target) else None
    if not isinstance(command, click.Command):
        raise PluginError(
            f"command {entry.name!r} of {entry.distribution}: {entry.target} is {type(target).__name__}, "
            "neither a click command nor a function that makes one"
        )
    return command


def _warn(text: str) -> None:
    click.secho(f"warning: {text}", fg="yellow", err=True)
