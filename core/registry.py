"""Finds plugins, keeps what they register, and hands out the chosen ones.

Entry points are loaded here one by one, each guarded: a broken plugin stays a line in `engine plugins list` until
somebody asks for something it gives. Two distributions that register the same name are a conflict, an error when that
name is used.
"""

from __future__ import annotations

import importlib
import re
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import pluggy

from core import hookspecs
from core.config import PluginConfig
from core.errors import PluginError, nearest


@dataclass(slots=True)
class Entry:
    """One name that a plugin registered."""

    kind: str
    name: str
    target: str
    """"module:attribute", imported when chosen"""
    plugin: str
    distribution: str
    version: str
    info: dict[str, Any] = field(default_factory=dict)
    state: str = "ready"
    error: str | None = None


@dataclass(slots=True)
class BrokenPlugin:
    """A plugin that did not load, and why."""

    plugin: str
    distribution: str
    version: str
    error: str
    trace: str


class Registry:
    """Every plugin of this environment, as one engine sees them."""

    def __init__(self, config: PluginConfig, hook_modules: Iterable[Any] = (hookspecs,)) -> None:
        self.pm = pluggy.PluginManager(hookspecs.PROJECT)
        for module in hook_modules:
            self.pm.add_hookspecs(module)
        self.entries: list[Entry] = []
        self.broken: list[BrokenPlugin] = []
        self.plugins: dict[str, str] = {}
        """entry-point name -> distribution"""
        self._choices = dict(map(_parse_choice, config.plugin))
        self._loaded: dict[tuple[str, str], Any] = {}
        self._discover(set(config.disable_plugin))

    def _discover(self, disabled: set[str]) -> None:
        points = sorted(metadata.entry_points(group=hookspecs.ENTRY_POINT_GROUP), key=lambda p: (p.name, p.value))
        names = {p.name for p in points}
        for name in disabled - names:
            raise PluginError(f"--disable-plugin {name!r}: no such plugin{nearest(name, names)}")
        seen: set[tuple[str, str]] = set()
        for point in points:
            distribution = point.dist.name if point.dist else "unknown"
            version = point.dist.version if point.dist else "0"
            if point.name in disabled or (distribution, point.name) in seen:
                continue
            # the same distribution may be found twice, installed and as a checkout's metadata
            seen.add((distribution, point.name))
            try:
                module = point.load()
                _check_module(module, point.name, self.pm)
                self.pm.register(module, f"{distribution}:{point.name}")
            except (Exception, SystemExit) as error:  # a stranger's import may do anything; the others must load
                self.broken.append(
                    BrokenPlugin(point.name, distribution, version, _one_line(error), traceback.format_exc())
                )
                continue
            self.plugins[point.name] = distribution
            self._collect(module, point.name, distribution, version)

    def _collect(self, module: ModuleType, plugin: str, distribution: str, version: str) -> None:
        for kind, hook in hookspecs.KINDS.items():
            implementation = getattr(module, hook, None)
            if implementation is None:
                continue
            found: list[Entry] = []

            def register(name: str, target: str, *, _kind: str = kind, _found: Any = found, **info: Any) -> None:
                _check_registered(name, target, info)
                _found.append(Entry(_kind, name, target, plugin, distribution, version, info))

            try:
                implementation(register)
            except Exception as error:
                message = f"{hook} failed: {_one_line(error)}"
                self.broken.append(BrokenPlugin(plugin, distribution, version, message, traceback.format_exc()))
                continue
            self.entries.extend(found)

    def names(self, kind: str) -> list[str]:
        """Registered names of a kind, in the order of registration, without repeats."""
        return list(dict.fromkeys(e.name for e in self.entries if e.kind == kind))

    def of_kind(self, kind: str) -> list[Entry]:
        return [e for e in self.entries if e.kind == kind]

    def entry(self, kind: str, name: str) -> Entry:
        """The one entry meant by `name`. Raises PluginError if there is none, or several and no choice."""
        found = [e for e in self.entries if e.kind == kind and e.name == name]
        if chosen := self._choices.get((kind, name)):
            found = [e for e in found if distribution_key(e.distribution) == distribution_key(chosen)]
            if not found:
                raise PluginError(f"--plugin {kind}:{name}={chosen}: {chosen!r} registers no {kind} {name!r}")
        if len(found) > 1:
            owners = sorted(e.distribution for e in found)
            raise PluginError(
                f"{kind} {name!r} is registered by {' and '.join(owners)}; choose with "
                f"--plugin {kind}:{name}={owners[0]}, or remove one with --disable-plugin"
            )
        if not found:
            names = self.names(kind)
            message = (
                f"{kind} {name!r} is not registered ({', '.join(sorted(names)) or 'none is'}){nearest(name, names)}"
            )
            if self.broken:
                message += "; these plugins could not be loaded: " + "; ".join(
                    f"{b.plugin} of {b.distribution} ({b.error})" for b in self.broken
                )
            raise PluginError(message)
        return found[0]

    def get(self, kind: str, name: str) -> Any:
        """Import and return what is registered as `name`. Raises PluginError with the plugin's own traceback."""
        key = (kind, name)
        if key not in self._loaded:
            entry = self.entry(kind, name)
            self._loaded[key] = load_target(entry)
            entry.state = "selected"
        return self._loaded[key]


def missing_packages(entry: Entry) -> str | None:
    """What an entry cannot be used without and is not installed here, and how to install it; None: all is there.

    Plugins say it as they register: `needs={"flash_attn": "pip install ..."}`, by names of modules.
    """
    missing = {name: how for name, how in entry.info.get("needs", {}).items() if find_spec(name) is None}
    if not missing:
        return None
    return f"needs {', '.join(missing)}, not installed here: {'; '.join(dict.fromkeys(missing.values()))}"


def check_chosen(registry: Registry, config: PluginConfig) -> None:
    """Raises PluginError, before anything is loaded, for a name that would else be looked up when it is first needed."""
    parsers = (("tool_parser", config.tool_call_parser), ("reasoning_parser", config.reasoning_parser))
    chosen = [("guided_backend", config.guided_backend), *(p for p in parsers if p[1] != "none")]
    for kind, name in chosen:
        if name != "auto" and (missing := missing_packages(entry := registry.entry(kind, name))):
            raise PluginError(f"{kind} {name!r} of {entry.distribution} {entry.version} {missing}")


def load_target(entry: Entry) -> Any:
    """Import what an entry names. Raises PluginError: with what it needs and is not installed, or its own traceback."""
    if missing := missing_packages(entry):
        entry.state, entry.error = "missing", missing
        raise PluginError(f"{entry.kind} {entry.name!r} of {entry.distribution} {entry.version} {missing}")
    module_name, _, attribute = entry.target.partition(":")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except Exception as error:
        entry.state, entry.error = "broken", _one_line(error)
        raise PluginError(
            f"{entry.kind} {entry.name!r} of {entry.distribution} {entry.version} cannot be imported from "
            f"{entry.target!r}:\n{traceback.format_exc()}"
        ) from error


def distribution_key(name: str) -> str:
    """Distributions are the same if these are: My_Plugin and my-plugin."""
    return re.sub(r"[-_.]+", "-", name).lower()


def load_registry(config: PluginConfig, hook_modules: Iterable[Any] = (hookspecs,)) -> Registry:
    """All plugins of this environment. `hook_modules`: more hook specs, of the server."""
    return Registry(config, hook_modules)


def _check_module(module: Any, name: str, pm: pluggy.PluginManager) -> None:
    version = getattr(module, "BACKPLANE_API", hookspecs.API_VERSION)
    if version != hookspecs.API_VERSION:
        raise PluginError(
            f"plugin {name!r} is written for plugin API {version}, this is {hookspecs.API_VERSION}; update one of them"
        )
    hooks = {spec for spec in vars(pm.hook) if not spec.startswith("_")} | set(hookspecs.KINDS.values())
    hooks |= SERVER_HOOKS
    for attribute, value in vars(module).items():
        if callable(value) and hasattr(value, f"{hookspecs.PROJECT}_impl") and attribute not in hooks:
            raise PluginError(f"plugin {name!r}: {attribute!r} is not a hook{nearest(attribute, hooks)}")


def _check_registered(name: object, target: object, info: dict[str, Any]) -> None:
    if not isinstance(name, str) or not name:
        raise PluginError(f"register({name!r}, ...): a name is a text")
    if not isinstance(target, str) or not re.fullmatch(r"[\w.]+:\w+", target):
        raise PluginError(
            f"register({name!r}, {target!r}): a target is a text 'module:attribute', imported when chosen"
        )
    if not isinstance(info.get("rank", 0), int | float):
        raise PluginError(f"register({name!r}, ...): rank={info['rank']!r} is not a number")
    needs = info.get("needs", {})
    if not isinstance(needs, dict) or not all(isinstance(t, str) and t for pair in needs.items() for t in pair):
        raise PluginError(f"register({name!r}, ...): needs={needs!r} is not a dictionary, module -> how to install it")
    markers = info.get("markers", ())
    if not isinstance(markers, tuple | list) or not all(isinstance(m, str) for m in markers):
        raise PluginError(f"register({name!r}, ...): markers={markers!r} is not a tuple of texts")


SERVER_HOOKS = {"register_routes", "register_commands"}
"""Hooks that the server declares; core knows their names alone, so that it does not take them for mistakes."""


def _parse_choice(text: str) -> tuple[tuple[str, str], str]:
    head, _, distribution = text.partition("=")
    kind, _, name = head.partition(":")
    if not distribution or not name:
        raise PluginError(f"--plugin {text!r} is not KIND:NAME=DISTRIBUTION, e.g. attention_backend:triton=backplane")
    if kind not in hookspecs.KINDS:
        raise PluginError(f"--plugin {text!r}: {kind!r} is no kind{nearest(kind, hookspecs.KINDS)}")
    return (kind, name), distribution


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
