"""click options made from the config classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

import click

from core.config import Option, option_owners, section_options
from server.cli.arguments import Arguments, JsonObject


def server_options() -> dict[str, Option]:
    from server.config import ServerConfig

    return section_options("server", ServerConfig)


class EngineCommand(click.Command):
    """A command with the engine's options. Underscores, other spellings, `--flag true` and `--config FILE` are
    understood. `names`: more spellings, of this command alone."""

    def __init__(self, *args: Any, names: Mapping[str, str] | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self._names = names or {}

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, self.normalise(ctx, args))

    def normalise(self, ctx: click.Context, args: list[str]) -> list[str]:
        """The arguments in click's spelling."""
        options = {
            o.removeprefix("--"): p
            for p in self.get_params(ctx)
            if isinstance(p, click.Option)
            for o in (*p.opts, *p.secondary_opts)
        }
        return Arguments(str(self.name), options, self._names).read(args)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_paragraph()
        formatter.write_text(
            "--config FILE reads options from a YAML file; those of the command line win. vLLM's spellings work too: "
            "docs/cli.md lists them."
        )


class _Integer(click.ParamType):
    """A whole number; 8k is 8000, 8K 8192, and so on with m and M, g and G."""

    name = "integer"
    _UNITS = {"k": 10**3, "m": 10**6, "g": 10**9, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        if isinstance(value, int):
            return value
        text, unit = str(value), 1
        if text[-1:] in self._UNITS:
            text, unit = text[:-1], self._UNITS[text[-1]]
        try:
            number = Decimal(text) * unit
            if number == number.to_integral_value():
                return int(number)
        except (ArithmeticError, ValueError):
            pass
        self.fail(f"{value!r} is not a valid integer", param, ctx)


def click_option(option: Option) -> Callable[[Any], Any]:
    flag = "--" + option.name.replace("_", "-")
    shown = "" if option.default in (None, (), {}) else f"  [default: {option.default}]"
    text = option.help.replace("\n", " ") + shown
    if option.type is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", option.name, default=None, help=text)
    kind: Any = option.type
    if kind is int:
        kind = _Integer()
    if option.choices:
        kind = click.Choice(option.choices)
    elif option.type is dict:
        kind = JsonObject()
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
