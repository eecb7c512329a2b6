"""Every public name of core says what it is; every option, hook, kind and command is in the documents."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import core

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
API = {name for name in core.__all__ if name[0].isupper()}


def public(body: list[ast.stmt]) -> Iterator[Definition]:
    for node in body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield node


def silent(path: Path) -> Iterator[str]:
    """Public names of one file that have no docstring. A class's methods count where others write or call them: in
    contracts, and in what `from core import ...` gives."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    where = str(path.relative_to(ROOT))
    if text.strip() and not ast.get_docstring(tree):
        yield where
    for node in public(tree.body):
        if not ast.get_docstring(node):
            yield f"{where}: {node.name}"
        if isinstance(node, ast.ClassDef) and (path.parent.name == "interfaces" or node.name in API):
            for method in public(node.body):
                if not ast.get_docstring(method):
                    yield f"{where}: {node.name}.{method.name}"


def test_every_public_name_has_a_docstring():
    files = sorted((ROOT / "core").rglob("*.py"))
    assert len(files) > 50
    missing = [name for path in files for name in silent(path)]
    assert not missing, "\n".join(missing)


def test_every_module_of_plugins_and_server_says_what_it_is():
    files = [p for package in ("plugins", "server") for p in (ROOT / package).rglob("*.py") if p.read_text().strip()]
    missing = [str(p.relative_to(ROOT)) for p in files if not ast.get_docstring(ast.parse(p.read_text()))]
    assert files and not missing, missing


def test_every_option_of_every_command_is_explained():
    import click

    from server.cli.main import cli

    def commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
        context = click.Context(group)
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            if isinstance(command, click.Group):
                yield from commands(command, f"{path} {name}")
            else:
                yield f"{path} {name}", command

    found = dict(commands(cli, "engine"))
    assert {"engine serve", "engine bench serve", "engine plugins new"} <= set(found)
    text = (DOCS / "cli.md").read_text()
    for path, command in found.items():
        assert command.help, path
        assert command.name in text, f"docs/cli.md does not name {path}"
        for option in command.params:
            assert isinstance(option, click.Argument) or option.help, f"{path} {option.name}"  # type: ignore[attr-defined]


def test_every_hook_and_skeleton_is_documented():
    from core.hookspecs import KINDS
    from server.cli.new_plugin import SKELETONS
    from server.hook_entries import HOOKS

    text = (DOCS / "plugins.md").read_text()
    for hook in (*KINDS.values(), *HOOKS.values()):
        assert f"`{hook}`" in text
    assert set(SKELETONS) == {*KINDS, *HOOKS}


def test_files_that_documents_name_are_there():
    """In backquotes, or as the target of a link."""
    pages = [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "benchmarks" / "README.md",
        *sorted(DOCS.glob("*.md")),
    ]
    pattern = re.compile(r"`((?:core|plugins|server|tests|benchmarks|docs|training|monitoring)/[\w./-]+)`")
    links = re.compile(r"\]\((?!https?:|#)([^)#]+)(?:#[^)]*)?\)")
    named = 0
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for name in pattern.findall(text):
            named += 1
            assert (ROOT / name).exists(), f"{page.name} names {name}"
        for target in links.findall(text):
            named += 1
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
    assert named > 30


def test_every_decision_is_numbered_once():
    numbers = [p.name[:4] for p in sorted((DOCS / "decisions").glob("*.md"))]
    assert numbers == [f"{i:04}" for i in range(1, len(numbers) + 1)]
