"""LangChain, LiteLLM and instructor against a real server process. `pip install backplane[clients]` brings them.

Each runs in a process of its own, as its users run it: what these libraries leave open at exit is not ours to mend.
"""

from __future__ import annotations

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
