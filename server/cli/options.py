"""click options made from the config classes, and the reading of vLLM's spellings."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from typing import Any

import click

from core.config import Option, option_owners, section_options
from server.cli import aliases


def server_options() -> dict[str, Option]:
    from server.config import ServerConfig

    return section_options("server", ServerConfig)


class EngineCommand(click.Command):
    """A command with the engine's options. Underscores, other spellings and `--flag true` are understood."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, self.normalise(args))

    def normalise(self, args: list[str]) -> list[str]:
        known = {
            o.removeprefix("--"): p
            for p in self.params
            if isinstance(p, click.Option)
            for o in (*p.opts, *p.secondary_opts)
        }
        result: list[str] = []
        i = 0
        while i < len(args):
            arg = args[i]
            i += 1
            if arg == "--":
                return [*result, "--", *args[i:]]
            if not arg.startswith("--"):
                result.append(arg)
                continue
            spelled, equals, value = arg[2:].partition("=")
            name = spelled.replace("_", "-")
            name = aliases.ALIASES.get(name, name)

            if name in aliases.WITHOUT_EFFECT:
                if not equals and i < len(args) and _is_plain_value(args[i]):
                    i += 1
                click.echo(f"warning: --{spelled} has no effect: {aliases.WITHOUT_EFFECT[name]}", err=True)
                continue
            if name in aliases.ONLY:
                allowed, why = aliases.ONLY[name]
                given = value
                if not equals and i < len(args):
                    given = args[i]
                    i += 1
                if given != allowed:
                    raise click.UsageError(f"--{spelled} {given}: only {allowed} is possible so far ({why})")
                continue
            if name in aliases.REFUSED:
                raise click.UsageError(f"--{spelled}: {aliases.REFUSED[name]}")
            option = known.get(name)
            if option is None:
                close = difflib.get_close_matches(name, [*known, *aliases.ALIASES], 1, 0.6)
                hint = f"; did you mean --{close[0]}?" if close else f"; {self.name} --help lists all"
                raise click.UsageError(f"--{spelled} is not an option of {self.name}{hint}")
            if option.is_flag:
                # --flag, --no-flag, --flag true
                word = value if equals else args[i] if i < len(args) else ""
                if word.lower() in ("true", "false", "1", "0", "yes", "no") and (equals or not word.isdigit()):
                    i += 0 if equals else 1
                    positive, negative = option.opts[0], (option.secondary_opts or [""])[0]
                    if word.lower() in ("true", "1", "yes"):
                        result.append(positive)
                    elif negative:
                        result.append(negative)
                else:
                    result.append(f"--{name}")
                continue
            values = [value] if equals else []
            if not equals:
                while (
                    i < len(args)
                    and (not args[i].startswith("--") or args[i] == "--")
                    and not (values and not option.multiple)
                ):
                    values.append(args[i])
                    i += 1
            if not values:
                raise click.UsageError(f"--{spelled} wants a value")
            for v in values:
                result += [f"--{name}", aliases.VALUES.get(name, {}).get(v, v)]
        return result


def _is_plain_value(text: str) -> bool:
    return text.replace(".", "", 1).isdigit() or text.lower() in ("true", "false")


class _Json(click.ParamType):
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


def click_option(option: Option) -> Callable[[Any], Any]:
    flag = "--" + option.name.replace("_", "-")
    shown = "" if option.default in (None, (), {}) else f"  [default: {option.default}]"
    text = option.help.replace("\n", " ") + shown
    if option.type is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", option.name, default=None, help=text)
    kind: Any = option.type
    if option.choices:
        kind = click.Choice(option.choices)
    elif option.type is dict:
        kind = _Json()
    return click.option(flag, option.name, type=kind, default=None, multiple=option.multiple, help=text)


def with_engine_options(function: Any) -> Any:
    """Add every engine option; the function gets them in `options`, only those that were given."""
    for option in reversed(list(option_owners().values())):
        if option.name != "model":
            function = click_option(option)(function)
    return function


def with_server_options(function: Any) -> Any:
    for option in reversed(list(server_options().values())):
        function = click_option(option)(function)
    return function


def given(values: dict[str, Any], owners: dict[str, Option]) -> dict[str, Any]:
    return {k: v for k, v in values.items() if k in owners and v is not None and v != ()}
