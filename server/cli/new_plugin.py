"""The skeleton of a plugin's package, from the files in templates/. Knows what differs between kinds."""

from __future__ import annotations

import importlib.util
import keyword
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import click

from core.hookspecs import KINDS
from core.registry import distribution_key
from server.hook_entries import HOOKS


@dataclass(frozen=True, slots=True)
class Kind:
    """What one kind's skeleton says."""

    summary: str
    target: str
    """The module with the target."""
    suffix: str
    """Of the class, and of a model's registered name."""
    protocol: str
    use: str
    info: str = ""
    """What is registered beside the name."""
    attribute: str = ""
    """The target's name; empty: a class named after the package."""


SKELETONS: dict[str, Kind] = {
    "model": Kind(
        "A model architecture",
        "model",
        "ForCausalLM",
        "core/interfaces/model.py",
        "A checkpoint whose config.json names `@REGISTERED@` in `architectures` is served by it; any other with\n"
        "`engine serve FOLDER --model-impl @REGISTERED@`.",
    ),
    "attention_backend": Kind(
        "An attention backend",
        "backend",
        "Backend",
        "core/interfaces/attention.py",
        "Use it with `engine serve --attention-backend @REGISTERED@`.",
        ', devices=("cpu", "cuda")',
    ),
    "quantization": Kind(
        "A quantization method",
        "method",
        "Method",
        "core/interfaces/quantization.py",
        'A checkpoint with `"quantization_config": {"quant_method": "@REGISTERED@"}` in config.json is read by it.',
    ),
    "guided_backend": Kind(
        "A guided-decoding backend",
        "backend",
        "Backend",
        "core/interfaces/guided.py",
        "Use it with `engine serve --guided-backend @REGISTERED@`, or for one request with `guided_decoding_backend`.",
        ", rank=50",
    ),
    "tool_parser": Kind(
        "A parser of tool calls",
        "parser",
        "Parser",
        "core/interfaces/parser.py",
        "Use it with `engine serve --tool-call-parser @REGISTERED@`; `auto` takes it when all `markers` stand in the\n"
        "model's chat template.",
        ', markers=("<call ",)',
    ),
    "reasoning_parser": Kind(
        "A parser of reasoning",
        "parser",
        "Reasoning",
        "core/interfaces/parser.py",
        "Use it with `engine serve --reasoning-parser @REGISTERED@`; `auto` takes it when all `markers` stand in the\n"
        "model's chat template.",
        ', markers=("<why>",)',
    ),
    "model_source": Kind(
        "A source of checkpoints",
        "source",
        "Source",
        "core/interfaces/source.py",
        "Use it with `engine serve @REGISTERED@:NAME`.",
    ),
    "executor": Kind(
        "An executor",
        "executor",
        "Executor",
        "core/interfaces/executor.py",
        "Use it with `engine serve --executor @REGISTERED@`.",
    ),
    "routes": Kind(
        "Routes of the HTTP server",
        "routes",
        "",
        "server/hookspecs.py",
        "Installed, it is served: `POST /@MODULE@`. `engine serve --disable-plugin @MODULE@` leaves it out.",
        attribute="make_routes",
    ),
    "command": Kind(
        "A command of `engine`",
        "command",
        "",
        "server/hookspecs.py",
        "Installed, it is there: `engine @REGISTERED@ --help`.",
        ', help="Count tokens."',
        attribute="command",
    ),
}


def write_plugin(name: str, kind: str, parent: Path) -> Path:
    """Make parent/NAME. Raises click.UsageError for a name that cannot be one, or a folder that is there."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9]*([-_.][A-Za-z0-9]+)*", name):
        raise click.UsageError(
            f"{name!r} cannot name a distribution; take letters and digits, joined by dashes, e.g. my-{kind}"
        )
    module = distribution_key(name).replace("-", "_")
    if keyword.iskeyword(module) or importlib.util.find_spec(module) is not None:
        raise click.UsageError(f"the package would be {module!r}, which Python has already; choose another name")
    folder = parent / name
    if folder.exists():
        raise click.UsageError(f"{folder} exists; remove it, choose another name, or another --directory")
    skeleton = SKELETONS[kind]
    camel = "".join(part.capitalize() for part in module.split("_"))
    class_name = camel.removesuffix(skeleton.suffix) + skeleton.suffix
    values = {
        # first, for what it holds is filled in too
        "USE": skeleton.use,
        "NAME": name,
        "MODULE": module,
        "SUMMARY": skeleton.summary,
        "TARGET": skeleton.target,
        "CLASS": skeleton.attribute or class_name,
        "REGISTERED": {"model": class_name, "command": distribution_key(name)}.get(kind, module),
        "PROTOCOL": skeleton.protocol,
        "HOOK": {**KINDS, **HOOKS}[kind],
        "INFO": skeleton.info,
        "ENV": f"{module.upper()}_HOME",
    }
    files = {
        "pyproject.toml": "pyproject.toml.tmpl",
        "README.md": "README.md.tmpl",
        f"{module}/__init__.py": "plugin.py.tmpl",
        f"{module}/{skeleton.target}.py": f"{kind}/target.py.tmpl",
        f"tests/test_{module}.py": f"{kind}/test.py.tmpl",
    }
    templates = resources.files("server.cli") / "templates"
    for path, template in files.items():
        text = templates.joinpath(template).read_text(encoding="utf-8")
        for key, value in values.items():
            text = text.replace(f"@{key}@", value)
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    return folder
