"""server -> core <- plugins; core is light to import; public names are pinned."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import core

ROOT = Path(__file__).parents[2]
FORBIDDEN = {"core": {"plugins", "server"}, "plugins": {"server"}, "server": {"plugins"}}


def imports_of(path: Path) -> set[str]:
    """Every module a file imports, under TYPE_CHECKING and inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("package", FORBIDDEN)
def test_directions(package):
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        tops = {name.split(".")[0] for name in imports_of(path)}
        assert not tops & FORBIDDEN[package], f"{path.relative_to(ROOT)} imports {tops & FORBIDDEN[package]}"


def test_scheduler_and_cache_know_no_torch():
    for folder in ("scheduler", "kv_cache"):
        for path in (ROOT / "core" / folder).glob("*.py"):
            assert not {n for n in imports_of(path) if n.startswith(("torch", "core.runner", "core.engine"))}, path


def test_kernels_import_torch_and_triton_alone():
    for path in (ROOT / "core" / "kernels").rglob("*.py"):
        outside = {n for n in imports_of(path) if n.split(".")[0] == "core" and not n.startswith("core.kernels")}
        assert not outside, f"{path} imports {outside}"


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_core_is_light():
    code = "import sys, time; t = time.perf_counter(); import core; t = time.perf_counter() - t; "
    loaded, seconds = run(
        code + "print([m for m in ('torch', 'transformers', 'triton', 'numpy') if m in sys.modules]); print(t)"
    ).split("\n")[:2]
    assert loaded == "[]"
    assert float(seconds) < 0.1


def test_plugins_register_without_loading_torch():
    code = (
        "import sys; from core.registry import load_registry; from core.config import PluginConfig; "
        "r = load_registry(PluginConfig()); print(len(r.entries), r.broken, 'torch' in sys.modules)"
    )
    count, broken, torch_loaded = run(code).split()
    assert int(count) >= 9 and broken == "[]" and torch_loaded == "False"


def test_public_names():
    names = {
        "AsyncEngine",
        "AsyncEngineArgs",
        "AsyncLLMEngine",
        "BackplaneError",
        "BeamSearchParams",
        "CompletionOutput",
        "Engine",
        "EngineConfig",
        "GuidedDecodingParams",
        "LLM",
        "RequestError",
        "RequestOutput",
        "SamplingParams",
        "StructuredOutputsParams",
        "__version__",
        "hookimpl",
    }
    assert set(core.__all__) == names
    for name in names:
        assert getattr(core, name) is not None
