"""docs/cli.md and docs/config.md are what the code says; the README's Python runs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_reference_is_up_to_date():
    spec = importlib.util.spec_from_file_location("make_reference", DOCS / "make_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, text in module.pages().items():
        assert (DOCS / name).read_text() == text, f"docs/{name} is old: run python docs/make_reference.py"


def test_the_readme_runs():
    text = (DOCS.parent / "README.md").read_text()
    blocks = [b.split("```")[0] for b in text.split("```python\n")[1:]]
    assert blocks
    for block in blocks:
        if "openai" not in block:
            exec(compile(block, "README.md", "exec"), {})
