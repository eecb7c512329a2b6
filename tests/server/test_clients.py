"""LangChain, LiteLLM, instructor and openai's JavaScript client against a real server process. `pip install
backplane[clients]` brings the first three; node and npm bring the last.

Each runs in a process of its own, as its users run it: what these libraries leave open at exit is not ours to mend.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

CLIENTS = Path(__file__).parent / "clients"


@pytest.mark.parametrize(
    ("module", "script"),
    [
        ("langchain_openai", "use_langchain.py"),
        ("litellm", "use_litellm.py"),
        ("instructor", "use_instructor.py"),
    ],
)
def test_client(demo_server, module, script):
    if find_spec(module) is None:
        pytest.skip("pip install backplane[clients]")
    command = [sys.executable, "-W", "ignore", str(CLIENTS / script), demo_server.url]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0 and ended.stdout.endswith("passed\n"), ended.stdout + ended.stderr


@pytest.fixture(scope="session")
def javascript(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with openai and zod from npm's registry."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("needs node and npm")
    folder = tmp_path_factory.mktemp("javascript")
    quick = ["--no-audit", "--no-fund", "--fetch-retries=0", "--fetch-timeout=20000", "--loglevel=error"]
    command = [npm, "install", "--prefix", str(folder), *quick, "openai@^7 || ^6", "zod@^4"]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=90)
    except subprocess.TimeoutExpired:
        pytest.skip("npm's registry does not answer")
    if ended.returncode:
        pytest.skip(f"npm's registry cannot be reached: {ended.stderr[:200]}")
    return folder


def test_javascript(demo_server, javascript):
    script = javascript / "use_openai.mjs"
    shutil.copy(CLIENTS / script.name, script)
    ended = subprocess.run(["node", str(script), demo_server.url], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0 and ended.stdout.endswith("passed\n"), ended.stdout + ended.stderr
    demo_server.wait_idle()
