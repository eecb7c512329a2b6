"""`engine plugins`: what is installed, and whether it loads."""

from __future__ import annotations

import json

import click


@click.group()
def plugins() -> None:
    """What is installed."""


@plugins.command("list")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def list_plugins(as_json: bool) -> None:
    """Every registered name: kind, plugin, distribution, version, state."""
    from core.config import PluginConfig
    from core.registry import load_registry

    registry = load_registry(PluginConfig())
    counts: dict[tuple[str, str], int] = {}
    for e in registry.entries:
        counts[e.kind, e.name] = counts.get((e.kind, e.name), 0) + 1
    rows = [
        {
            "kind": e.kind,
            "name": e.name,
            "plugin": e.plugin,
            "distribution": e.distribution,
            "version": e.version,
            "state": "conflict: choose with --plugin" if counts[e.kind, e.name] > 1 else e.state,
        }
        for e in registry.entries
    ]
    rows += [
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
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    widths = {k: max(len(k), *(len(r[k]) for r in rows)) for k in rows[0]} if rows else {}
    for row in [{k: k for k in widths}, *rows]:
        click.echo("  ".join(row[k].ljust(w) for k, w in widths.items()).rstrip())


@plugins.command()
@click.argument("distribution")
def check(distribution: str) -> None:
    """Import everything that DISTRIBUTION registers."""
    from core.config import PluginConfig
    from core.errors import PluginError
    from core.registry import load_registry, load_target

    registry = load_registry(PluginConfig())
    found = [e for e in registry.entries if e.distribution == distribution]
    broken = [b for b in registry.broken if b.distribution == distribution]
    if not found and not broken:
        raise click.UsageError(f"distribution {distribution!r} registers no plugin; is it installed here?")
    failed = bool(broken)
    for b in broken:
        click.echo(f"broken  {b.plugin}: {b.error}\n{b.trace}")
    for entry in found:
        try:
            load_target(entry)
            click.echo(f"ok      {entry.kind} {entry.name}")
        except PluginError as error:
            failed = True
            click.echo(f"broken  {error}")
    if failed:
        raise SystemExit(1)
