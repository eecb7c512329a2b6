"""`engine plugins`: what is installed, whether it loads, and a new one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from core.config import option_owners
from core.hookspecs import KINDS
from server.cli.options import EngineCommand, click_option
from server.hook_entries import HOOKS

if TYPE_CHECKING:
    from core.registry import Entry, Registry

SELECTS = {
    "model_impl": "model",
    "attention_backend": "attention_backend",
    "quantization": "quantization",
    "guided_backend": "guided_backend",
    "tool_call_parser": "tool_parser",
    "reasoning_parser": "reasoning_parser",
    "executor": "executor",
}
"""Options that name a plugin -> its kind."""


@click.group()
def plugins() -> None:
    """What is installed."""


def _with_selection(function: Any) -> Any:
    """The options of `engine serve` that say which plugins are used."""
    for name in reversed([*SELECTS, "plugin", "disable_plugin"]):
        function = click_option(option_owners()[name])(function)
    return function


@plugins.command("list", cls=EngineCommand)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@_with_selection
def list_plugins(as_json: bool, plugin: tuple[str, ...], disable_plugin: tuple[str, ...], **selected: Any) -> None:
    """Every registered name: kind, plugin, distribution, version, state.

    A state is ready, selected (an option given here names it, and it imports), not usable here, with what is missing
    and how to install it, or broken, with the reason.
    """
    from core.config import PluginConfig
    from core.errors import PluginError
    from core.registry import load_registry

    registry = load_registry(PluginConfig(plugin=plugin, disable_plugin=disable_plugin))
    for option, kind in SELECTS.items():
        name = selected[option]
        if name in (None, "auto", "none"):
            continue
        entry = registry.entry(kind, name)
        try:
            registry.get(kind, name)
        except PluginError:
            if entry.state == "ready":
                raise
    rows = _rows(registry)
    for row in rows:
        if row["state"].startswith("broken"):
            what = f"{row['kind']} {row['name']}" if row["name"] != "-" else f"plugin {row['plugin']}"
            click.secho(f"warning: {what} of {row['distribution']} is {row['state']}", fg="yellow", err=True)
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    widths = {k: max(len(k), *(len(r[k]) for r in rows)) for k in rows[0]} if rows else {}
    for row in [{k: k for k in widths}, *rows]:
        click.echo("  ".join(row[k].ljust(w) for k, w in widths.items()).rstrip())


def _rows(registry: Registry) -> list[dict[str, str]]:
    from core.errors import PluginError
    from server.hook_entries import hook_entries

    entries: list[Entry] = list(registry.entries)
    try:
        for kind in HOOKS:
            entries += hook_entries(registry, kind)
    except PluginError as error:
        click.secho(f"warning: {error}", fg="yellow", err=True)
    rows = [
        {
            "kind": e.kind,
            "name": e.name,
            "plugin": e.plugin,
            "distribution": e.distribution,
            "version": e.version,
            "state": _state(e, registry),
        }
        for e in entries
    ]
    return rows + [
        {
            "kind": "-",
            "name": "-",
            "plugin": b.plugin,
            "distribution": b.distribution,
            "version": b.version,
            "state": f"broken: {b.error}",
        }
        for b in registry.broken
    ]


def _state(entry: Entry, registry: Registry) -> str:
    from core.errors import PluginError
    from core.registry import missing_packages

    if entry.state == "broken":
        return f"broken: {entry.error}"
    if missing := missing_packages(entry):
        return f"not usable here: {missing}"
    if entry.kind in KINDS:
        try:
            meant = registry.entry(entry.kind, entry.name)
        except PluginError:
            return f"conflict: choose with --plugin {entry.kind}:{entry.name}={entry.distribution}"
        if meant is not entry:
            return f"left out: --plugin chooses {meant.distribution}"
    return entry.state


@plugins.command()
@click.argument("distribution")
def check(distribution: str) -> None:
    """Check everything that DISTRIBUTION registers: it loads, hooks are spelled right, targets have what they need."""
    from server.cli.check_plugin import check_distribution

    colours = {"ok": "green", "warning": "yellow", "broken": "red"}
    counts = dict.fromkeys(colours, 0)
    for verdict, text in check_distribution(distribution):
        counts[verdict] += 1
        click.echo(f"{click.style(verdict.ljust(8), fg=colours[verdict])} {text}")
    click.echo(f"{distribution}: {', '.join(f'{n} {verdict}' for verdict, n in counts.items())}")
    if counts["broken"]:
        raise SystemExit(1)


@plugins.command()
@click.argument("name")
@click.option("--kind", type=click.Choice([*KINDS, *HOOKS]), required=True, help="What the plugin gives.")
@click.option(
    "--directory", type=click.Path(file_okay=False, path_type=Path), default=".", help="Where its folder is made."
)
def new(name: str, kind: str, directory: Path) -> None:
    """Write the package of a plugin that works, with a test that holds it to its contract."""
    from server.cli.new_plugin import write_plugin

    folder = write_plugin(name, kind, directory)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        click.echo(path)
    click.echo(f'\nnext: cd {folder} && pip install -e ".[test]" && pytest && engine plugins check {name}')
