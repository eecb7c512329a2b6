"""`engine plugins check`: what is wrong with one distribution's plugins, before anybody chooses them."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from types import FunctionType
from typing import Any, Literal

from core import hookspecs
from core.config import PluginConfig
from core.errors import PluginError, nearest
from core.registry import SERVER_HOOKS, Entry, Registry, distribution_key, load_registry, load_target, missing_packages
from server.hook_entries import HOOKS, hook_entries

Verdict = tuple[Literal["ok", "warning", "broken"], str]

PROTOCOLS = {
    "model": "core.interfaces.model:Model",
    "quantization": "core.interfaces.quantization:QuantizationMethod",
    "attention_backend": "core.interfaces.attention:AttentionBackend",
    "guided_backend": "core.interfaces.guided:GuidedBackend",
    "tool_parser": "core.interfaces.parser:OutputParser",
    "reasoning_parser": "core.interfaces.parser:OutputParser",
    "model_source": "core.interfaces.source:ModelSource",
    "executor": "core.interfaces.executor:Executor",
}
HEAVY = ("torch", "transformers", "triton", "tokenizers")
"""Not to be imported before a name is chosen."""


def check_distribution(distribution: str) -> Iterator[Verdict]:
    """Every finding about a distribution's plugins. Raises PluginError if it registers none."""
    key = distribution_key(distribution)
    points = [
        p
        for p in metadata.entry_points(group=hookspecs.ENTRY_POINT_GROUP)
        if p.dist is not None and distribution_key(p.dist.name) == key
    ]
    registry = load_registry(PluginConfig())
    if not points:
        known = {*registry.plugins.values(), *(b.distribution for b in registry.broken)}
        raise PluginError(
            f"distribution {distribution!r} has no entry point in the group {hookspecs.ENTRY_POINT_GROUP!r}; is it "
            f"installed here? Plugins come from {', '.join(sorted(known))}{nearest(distribution, known)}"
        )
    for point in {p.name: p for p in points}.values():
        yield from _check_module(point, registry, key)
    broken = {b.plugin for b in registry.broken if distribution_key(b.distribution) == key}
    entries = [e for e in registry.entries if distribution_key(e.distribution) == key]
    ours: list[Entry] = []
    for kind in HOOKS if not broken else ():
        try:
            ours += [e for e in hook_entries(registry, kind) if distribution_key(e.distribution) == key]
        except PluginError as error:
            yield "broken", str(error)
    if not entries and not ours and not broken:
        yield "warning", f"registers nothing; hooks are {', '.join(sorted(hookspecs.KINDS.values()))}"
    for entry in [*entries, *ours]:
        yield from _check_entry(entry, registry)


def _check_module(point: metadata.EntryPoint, registry: Registry, key: str) -> Iterator[Verdict]:
    label = f"plugin {point.name} ({point.value})"
    failed = [b for b in registry.broken if b.plugin == point.name and distribution_key(b.distribution) == key]
    for b in failed:
        yield "broken", f"{label}: {b.error}\n{b.trace.rstrip()}"
    if failed:
        return
    module = point.load()
    hooks = {*hookspecs.KINDS.values(), *SERVER_HOOKS}
    implemented = []
    for name, value in vars(module).items():
        if not isinstance(value, FunctionType) or not name.startswith("register_"):
            continue
        marked = hasattr(value, f"{hookspecs.PROJECT}_impl")
        if name in hooks:
            implemented.append(name)
            if not marked:
                yield "warning", f"{label}: {name} has no @hookimpl; write `from core import hookimpl`"
        elif value.__module__ == module.__name__:
            yield "warning", f"{label}: {name} is not a hook and will not be called{nearest(name, hooks)}"
    yield "ok", f"{label}: {', '.join(implemented) or 'no hooks'}; API {hookspecs.API_VERSION}"
    if heavy := _heavy_imports(point.module):
        yield (
            "warning",
            f"{label}: importing it loads {', '.join(heavy)}, for every command; move that behind the target",
        )


def _heavy_imports(module: str) -> list[str]:
    """What a fresh interpreter has loaded after importing the module."""
    code = f"import sys, {module}; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    path = {"PYTHONPATH": ":".join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **path})
    return done.stdout.split()


def _check_entry(entry: Entry, registry: Registry) -> Iterator[Verdict]:
    label = f"{entry.kind} {entry.name} ({entry.target})"
    if lacks := missing_packages(entry):
        yield "warning", f"{label}: not checked, it {lacks}"
        return
    try:
        target = load_target(entry)
    except PluginError as error:
        yield "broken", str(error).rstrip()
        return
    others = [e for e in registry.entries if (e.kind, e.name) == (entry.kind, entry.name) and e is not entry]
    for other in others:
        yield (
            "warning",
            f"{label}: {other.distribution} registers this name too; it can be used with "
            f"--plugin {entry.kind}:{entry.name}={entry.distribution} only",
        )
    if isinstance(target, type) and entry.kind in PROTOCOLS:
        missing = [m for m in _methods(PROTOCOLS[entry.kind]) if not callable(getattr(target, m, None))]
        if missing:
            yield "broken", f"{label}: lacks {', '.join(missing)}, of {PROTOCOLS[entry.kind]}"
            return
        own = getattr(target, "name", entry.name)
        if isinstance(own, str) and own != entry.name:
            yield "warning", f"{label}: its `name` is {own!r}, and messages will say that"
    elif entry.kind in PROTOCOLS and not callable(target):
        yield "broken", f"{label}: is {type(target).__name__}, neither a class nor a function that makes one"
        return
    yield "ok", label


def _methods(protocol: str) -> list[str]:
    module, _, name = protocol.partition(":")
    found: Any = getattr(importlib.import_module(module), name)
    return [m for m, v in vars(found).items() if not m.startswith("_") and isinstance(v, FunctionType | staticmethod)]
