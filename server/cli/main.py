"""`engine`: serve, generate, chat, bench, plugins, doctor."""

from __future__ import annotations

import sys
from typing import Any

import click

import core
from server.cli.options import EngineCommand, with_engine_options, with_server_options


class _Lazy(click.Group):
    """Commands whose modules are imported when they are called."""

    LAZY = {
        "bench": "server.cli.bench:bench",
        "plugins": "server.cli.plugins:plugins",
        "doctor": "server.cli.doctor:doctor",
    }
    HELP = {
        "bench": "Measure: latency, throughput, serve.",
        "plugins": "What is installed: list, check, new.",
        "doctor": "Say what this machine has and what would be chosen.",
    }

    OURS = ["serve", "generate", "chat", "bench", "plugins", "doctor"]

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.OURS, *self._plugins()]

    def _plugins(self) -> dict[str, Any]:
        """Commands of plugins; looked for once, and never for one of our own."""
        if self._from_plugins is None:
            from server.cli.plugin_commands import plugin_commands

            self._from_plugins = plugin_commands(self.OURS)
        return self._from_plugins

    _from_plugins: dict[str, Any] | None = None

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name in self.commands:
            return super().get_command(ctx, name)
        import importlib

        if name not in self.LAZY:
            from server.cli.plugin_commands import load_command

            return load_command(self._plugins()[name]) if name in self._plugins() else None

        module, _, attribute = self.LAZY[name].partition(":")
        return getattr(importlib.import_module(module), attribute)  # type: ignore[no-any-return]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = []
        for name in self.list_commands(ctx):
            if command := self.commands.get(name):
                text = command.get_short_help_str(70)
            elif name in self.HELP:
                text = self.HELP[name]
            else:
                entry = self._plugins()[name]
                text = f"{entry.info.get('help', '')} ({entry.distribution})".strip()
            rows.append((name, text))
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        from core.errors import nearest

        name = args[0] if args else ""
        if name and not name.startswith("-") and name not in self.OURS and name not in self._plugins():
            raise click.UsageError(f"no command {args[0]!r}{nearest(args[0], self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)


@click.group(cls=_Lazy)
@click.version_option(core.__version__, prog_name="backplane")
def cli() -> None:
    """Backplane: an LLM inference and serving engine."""


@cli.command(cls=EngineCommand)
@click.argument("model", required=False)
@click.option("--model", "model_option", help="The model, as an option instead of an argument.")
@with_server_options
@with_engine_options
def serve(model: str | None, model_option: str | None, **values: Any) -> None:
    """Serve MODEL (a folder, a Hugging Face name; the demo model without one) over OpenAI's API."""
    from core.config import EngineConfig, option_owners
    from server.cli.logs import set_up_logs
    from server.cli.options import given, server_options
    from server.config import ServerConfig

    options = given(values, option_owners())
    options["model"] = model or model_option or "demo"
    server = ServerConfig(**given(values, server_options()))
    config = EngineConfig.from_options(**options)
    set_up_logs(server.log_level)
    from server.launch import serve as run

    run(config, server)


@cli.command(cls=EngineCommand)
@click.argument("prompts", nargs=-1, required=True)
@click.option("--model", default="demo", show_default=True, help="A folder, a Hugging Face name, or demo.")
@click.option("--max-tokens", type=int, default=128, show_default=True, help="Most new tokens.")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 takes the likeliest token.")
@click.option("--raw", is_flag=True, help="Complete the text as it is, without the chat template.")
@with_engine_options
def generate(
    prompts: tuple[str, ...], model: str, max_tokens: int, temperature: float, raw: bool, **values: Any
) -> None:
    """Answer PROMPTS, one output each, without a server."""
    from core import Engine, SamplingParams
    from core.config import option_owners
    from server.cli.options import given

    params = SamplingParams(max_tokens=max_tokens, temperature=temperature)
    with Engine(model=model, **given(values, option_owners())) as engine:
        if raw or engine.tokenizer.chat_template is None:
            outputs = engine.generate(list(prompts), params)
        else:
            outputs = engine.chat([[{"role": "user", "content": p}] for p in prompts], params)
        for output in outputs:
            click.echo(output.outputs[0].text)


@cli.command(cls=EngineCommand)
@click.option("--model", default="demo", show_default=True, help="A folder, a Hugging Face name, or demo.")
@click.option("--url", help="Talk to a server instead, e.g. http://127.0.0.1:8000/v1")
@click.option("--api-key", default="none", help="Key for --url.")
@click.option("--system", help="A system message.")
@click.option("--temperature", type=float, default=0.7, show_default=True, help="0 takes the likeliest token.")
@click.option("--max-tokens", type=int, default=512, show_default=True, help="Most tokens of an answer.")
@with_engine_options
def chat(**values: Any) -> None:
    """Talk to a model in the terminal."""
    from server.cli.chat import run_chat

    run_chat(values)


def main() -> None:
    """Entry point: errors that are the user's to mend are one line, not a traceback."""
    from core.errors import BackplaneError

    try:
        cli(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
    except KeyboardInterrupt:
        sys.exit(130)
    except BackplaneError as error:
        click.secho(f"error: {error}", fg="red", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
