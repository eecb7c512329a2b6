"""Writes docs/config.md and docs/cli.md from the code: python docs/make_reference.py"""

from __future__ import annotations

from pathlib import Path


def config_page() -> str:
    from core.config import SECTIONS, option_owners
    from server.cli.options import server_options

    lines = [
        "# Options",
        "",
        "Made from core/config.py and server/config.py. Each is a flag of `engine serve` (with dashes) and, but for the",
        "server's, a keyword of `Engine(...)`.",
    ]
    sections = [
        (name, cls.__doc__, [o for o in option_owners().values() if o.section == name])
        for name, cls in SECTIONS.items()
    ]
    from server.config import ServerConfig

    sections.append(("server", ServerConfig.__doc__, list(server_options().values())))
    for name, text, options in sections:
        lines += ["", f"## {name}", "", str(text), "", "| option | default | meaning |", "| --- | --- | --- |"]
        for o in options:
            allowed = f" ({', '.join(o.choices)})" if o.choices else ""
            meaning = o.help.replace("\n", " ").replace("|", "\\|")
            lines.append(f"| `{o.name}` | `{o.default!r}` | {meaning}{allowed} |")
    return "\n".join(lines) + "\n"


def cli_page() -> str:
    from server.cli import aliases

    lines = [
        "# The command",
        "",
        "| command | what it does |",
        "| --- | --- |",
        "| `engine serve [MODEL]` | serve over OpenAI's API; without a model, the demo model |",
        "| `engine generate PROMPT...` | answer prompts without a server |",
        "| `engine chat` | talk in the terminal, to a local model or `--url` |",
        "| `engine bench latency`, `throughput`, `serve` | measure the engine, or any OpenAI-compatible server |",
        "| `engine plugins list`, `check DIST`, `new NAME` | what is installed, what is wrong with it, and a new one |",
        "| `engine doctor [--run]` | what this machine has, and what would be chosen |",
        "",
        "Options are in [config.md](config.md). Dashes and underscores are the same; `--flag`, `--no-flag` and `--flag true`",
        "all work; numbers may be written `8k` (8000) or `8K` (8192); an unknown option is an error that names the nearest one.",
        "",
        "`--config FILE` reads options from a YAML file; those of the command line win:",
        "",
        "    model: Qwen/Qwen3-8B",
        "    max-model-len: 16K",
        "    enable-prefix-caching: true",
        "    served-model-name: [qwen, default]",
        "    hf-overrides: {rope_theta: 1000000}",
        "",
        "A key of an option that is a JSON object may be given alone: `--hf-overrides.rope_theta 1000000`.",
        "",
        "## vLLM's other spellings",
        "",
        "They work on the command line, in the file, and (but for the server's) as keywords of `Engine(...)` and `LLM(...)`.",
        "",
        "| spelling | becomes |",
        "| --- | --- |",
        *(f"| `--{a}` | `--{b}` |" for a, b in sorted(aliases.NAMES.items())),
        *(f"| `--{a}` | `{' '.join(b)}` |" for a, b in sorted(aliases.FLAGS.items())),
        *(f"| `--{a}` | `--{b}.{c}` |" for a, (b, c) in sorted(aliases.JSON_PARTS.items())),
        *(f"| `{a}` | `--{b}` |" for a, b in sorted(aliases.SHORT.items())),
        "",
        "| option | spelling of its value | becomes |",
        "| --- | --- | --- |",
        *(
            f"| `--{a}` | `{b}` | {_meaning(a, b, c)} |"
            for a, values in sorted(aliases.VALUES.items())
            for b, c in values.items()
        ),
        "",
        "## Accepted without effect, with a warning",
        "",
        "| option | why |",
        "| --- | --- |",
        *(f"| `--{a}` | {b.why} |" for a, b in sorted(aliases.IGNORED.items())),
        "",
        "## One value so far, or refused by name",
        "",
        "| option | why |",
        "| --- | --- |",
        *(f"| `--{a} {v}` | {b} |" for a, (v, b) in sorted(aliases.ONLY.items())),
        *(f"| `--{a}` | {b} |" for a, b in sorted(aliases.REFUSED.items())),
    ]
    return "\n".join(lines) + "\n"


def _meaning(option: str, spelling: str, value: str) -> str:
    from core.spellings import PREFERRED

    preferred = PREFERRED.get(option, {}).get(spelling)
    if preferred is None:
        return f"`{value}`"
    return f"`{preferred.value}` where it is installed, else `{value}`, with a warning"


def pages() -> dict[str, str]:
    return {"config.md": config_page(), "cli.md": cli_page()}


if __name__ == "__main__":
    for name, text in pages().items():
        (Path(__file__).parent / name).write_text(text)
