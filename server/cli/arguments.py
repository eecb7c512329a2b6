"""Reads a command line in any spelling of vLLM, and a file of options, into the one spelling that click knows."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from core.spellings import read_value
from server.cli import aliases

TRUE, FALSE = ("true", "1", "yes"), ("false", "0", "no")


class Arguments:
    """One command's arguments. `read` gives them in click's spelling; the last of two that say the same wins there."""

    def __init__(self, command: str, options: Mapping[str, click.Option], names: Mapping[str, str]) -> None:
        self._command = command
        self._options = options
        """flag without its dashes -> option, for `no-` flags too"""
        self._names = {**aliases.NAMES, **names}
        self._json: dict[str, dict[str, Any]] = {}
        """option -> what --rope-theta 1e6 or --hf-overrides.a.b 1 say of it"""
        self._config: str | None = None

    def read(self, args: list[str]) -> list[str]:
        """Raises click.UsageError for what is not known, or not possible."""
        result = self._read(args)
        result += [arg for name, value in self._json.items() for arg in (f"--{name}", json.dumps(value))]
        if self._config is None:
            return result
        given = {str(self._options[a[2:]].name) for a in result if a.startswith("--") and a[2:] in self._options}
        return _file_arguments(self._config, self._command, self._options, self._names, given) + result

    def _read(self, args: list[str]) -> list[str]:
        result: list[str] = []
        rest = list(args)
        while rest:
            arg = rest.pop(0)
            if arg == "--":
                return [*result, arg, *rest]
            short = _short(arg)
            if short:
                arg = short
            if not arg.startswith("--"):
                result.append(arg)
                continue
            spelled, equals, value = arg[2:].partition("=")
            if equals:
                rest.insert(0, value)
            result += self._one(spelled, bool(equals), rest)
        return result

    def _one(self, spelled: str, attached: bool, rest: list[str]) -> list[str]:
        """One option, its values taken from the front of `rest`. attached: with `=`, so that one value is there."""
        head, dot, path = spelled.partition(".")
        name = head.replace("_", "-") + dot + path
        name = self._names.get(name.replace("_", "-"), name)
        if name == "config" and "config" not in self._options:
            self._config = _value(spelled, attached, rest)
            return []
        option = self._options.get(name)
        if option is None:
            return self._not_ours(spelled, name, attached, rest)
        if option.is_flag:
            return _flag(name, option, attached, rest)
        if option.name == "hf_token" and not attached and (not rest or rest[0].startswith("--")):
            return []  # "the token that is saved on this machine", which is used anyway
        values = [_value(spelled, attached, rest)]
        while option.multiple and not attached and rest and not rest[0].startswith("-"):
            values.append(rest.pop(0))
        if option.multiple:
            values = [v for text in values for v in _list(text)]
        if isinstance(option.type, JsonObject):
            self._merge(name, spelled, values[-1])
            return []
        meant = [read_value(name, v, aliases.VALUES.get(name, {})) for v in values]
        for _, warning in meant:
            if warning:
                click.secho(f"warning: --{spelled}: {warning}", fg="yellow", err=True)
        return [arg for value, _ in meant for arg in (f"--{name}", value)]

    def _not_ours(self, spelled: str, name: str, attached: bool, rest: list[str]) -> list[str]:
        """Options that vLLM has, or nobody."""
        base, dot, path = name.partition(".")
        negated = base.removeprefix("no-")
        if dot and base in self._options and isinstance(self._options[base].type, JsonObject):
            value: Any = _parsed(_value(spelled, attached, rest))
            for key in reversed(path.split(".")):
                value = {key: value}
            _update(self._json.setdefault(base, {}), value)
        elif name in aliases.JSON_PARTS and aliases.JSON_PARTS[name][0] in self._options:
            owner, key = aliases.JSON_PARTS[name]
            _update(self._json.setdefault(owner, {}), {key: _parsed(_value(spelled, attached, rest))})
        elif base in aliases.FLAGS and aliases.FLAGS[base][0].removeprefix("--") in self._options:
            positive, _ = _switch(attached, rest)
            return aliases.FLAGS[base] if positive else []
        elif negated in aliases.IGNORED:
            ignored = aliases.IGNORED[negated]
            if ignored.takes_value and negated == base:
                _value(spelled, attached, rest)
            else:
                _switch(attached, rest)
            click.secho(f"warning: --{spelled} has no effect: {ignored.why}", fg="yellow", err=True)
        elif name in aliases.ONLY:
            allowed, why = aliases.ONLY[name]
            if (given := _value(spelled, attached, rest)) != allowed:
                raise click.UsageError(f"--{spelled} {given}: only {allowed} is possible so far ({why})")
        elif negated in aliases.REFUSED:
            if negated != base or (rest and rest[0].lower() == "false"):
                _switch(attached, rest)  # switched off, and so it is
                return []
            raise click.UsageError(f"--{spelled}: {aliases.REFUSED[negated]}")
        else:
            tables = (self._options, self._names, aliases.FLAGS, aliases.JSON_PARTS)
            others = (aliases.ONLY, aliases.IGNORED, aliases.REFUSED)
            known = ["config", *(n for table in (*tables, *others) for n in table)]
            close = difflib.get_close_matches(name, known, 1, 0.6)
            hint = f"; did you mean --{close[0]}?" if close else f"; {self._command} --help lists all"
            raise click.UsageError(f"--{spelled} is not an option of {self._command}{hint}")
        return []

    def _merge(self, name: str, spelled: str, text: str) -> None:
        value = _parsed(text)
        if not isinstance(value, dict):
            raise click.UsageError(f"--{spelled} {text}: is not a JSON object")
        _update(self._json.setdefault(name, {}), value)


class JsonObject(click.ParamType):
    """A JSON object, as a mapping."""

    name = "json"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if isinstance(value, dict):
            return value
        try:
            found = json.loads(value)
        except ValueError as error:
            self.fail(f"is not JSON: {error}", param, ctx)
        if not isinstance(found, dict):
            self.fail("is not a JSON object", param, ctx)
        return found


def _file_arguments(
    path: str, command: str, options: Mapping[str, click.Option], names: Mapping[str, str], given: set[str]
) -> list[str]:
    """What a YAML file says, but for the options that stand on the command line, which win."""
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise click.UsageError(f"--config {path}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise click.UsageError(f"--config {path} is not YAML: {error}") from None
    if content is None:
        return []
    if not isinstance(content, dict):
        raise click.UsageError(f"--config {path} is not a YAML mapping of options, as in `max-model-len: 4096`")
    args: list[str] = []
    for key, value in content.items():
        flag = f"--{key}"
        if value is None:
            continue
        if isinstance(value, bool):
            args.append(f"{flag}={str(value).lower()}")
        elif isinstance(value, list):
            args += [f"{flag}={v if isinstance(v, str) else json.dumps(v)}" for v in value]
        else:
            args.append(f"{flag}={json.dumps(value) if isinstance(value, dict) else value}")
    try:
        read = Arguments(command, options, names).read(args)
    except click.UsageError as error:
        raise click.UsageError(f"{path}: {error.message}") from None
    kept: list[str] = []
    while read:
        flag = read.pop(0)
        option = options[flag[2:]]
        values = [] if option.is_flag else [read.pop(0)]
        if option.name not in given:
            kept += [flag, *values]
    return kept


def _short(arg: str) -> str | None:
    """-tp 2 and -O3 with two dashes."""
    if arg in aliases.SHORT:
        return f"--{aliases.SHORT[arg]}"
    if arg.startswith("-O") and len(arg) > 2:
        value = arg[2:].removeprefix("=")
        return f"--{aliases.SHORT['-O']}{value}" if value.startswith(".") else f"--{aliases.SHORT['-O']}={value}"
    return None


def _value(spelled: str, attached: bool, rest: list[str]) -> str:
    if not rest or (not attached and rest[0].startswith("--")):
        raise click.UsageError(f"--{spelled} wants a value")
    return rest.pop(0)


def _switch(attached: bool, rest: list[str]) -> tuple[bool, bool]:
    """--flag, --flag true, --flag=false -> on or off, and whether a word said so. A bare digit may be an argument."""
    word = rest[0].lower() if rest else ""
    if word not in (*TRUE, *FALSE) or (word.isdigit() and not attached):
        return True, False
    rest.pop(0)
    return word in TRUE, True


def _flag(name: str, option: click.Option, attached: bool, rest: list[str]) -> list[str]:
    if attached and rest[0].lower() not in (*TRUE, *FALSE):
        raise click.UsageError(f"--{name}={rest[0]}: is not true or false")
    on, _ = _switch(attached, rest)
    if f"--{name}" in option.secondary_opts:
        on = not on
    return [option.opts[0]] if on else list(option.secondary_opts[:1])


def _list(text: str) -> list[str]:
    """'["a", "b"]' -> a, b; any other text is one."""
    if text.startswith("["):
        found = _parsed(text)
        if isinstance(found, list):
            return [v if isinstance(v, str) else json.dumps(v) for v in found]
    return [text]


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _update(into: dict[str, Any], value: Mapping[str, Any]) -> None:
    """Nested objects are joined, other values replaced."""
    for key, v in value.items():
        if isinstance(v, dict) and isinstance(into.get(key), dict):
            _update(into[key], v)
        else:
            into[key] = v
