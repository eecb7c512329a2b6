"""A stranger's package adds routes to the real server; two that want one path, or fail, stop the start by name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

MODULE = """
from core import hookimpl

@hookimpl
def register_routes(register):
    register("{name}", "{name}:make")

def make(state):
    from litestar import get, post
    from core import SamplingParams

    @get("{path}", opt={{"public": True}}, sync_to_thread=False)
    def hello() -> dict:
        return {{"models": list(state.served_names)}}

    @post("{path}/shout", status_code=200)
    async def shout(data: dict) -> dict:
        async for output in state.engine.generate(data["text"], SamplingParams(max_tokens=3), output_kind="final"):
            return {{"text": output.outputs[0].text.upper(), "tokens": len(output.outputs[0].token_ids)}}

    return [hello, shout]
"""


def path_with(site: Path) -> str:
    """For PYTHONPATH."""
    return os.pathsep.join([str(site), *filter(None, sys.path)])


@pytest.fixture(scope="module")
def stranger(tmp_path_factory, install_package) -> str:
    source = MODULE.format(name="strange_routes", path="/x")
    return path_with(install_package(tmp_path_factory.mktemp("stranger"), "strange_routes", source))


def test_a_strangers_routes(start_server, stranger):
    server = start_server(server={"api_key": ("k",)}, env={"PYTHONPATH": stranger})
    assert httpx.get(f"{server.url}/x").json() == {"models": ["tiny", "also-tiny"]}
    assert httpx.post(f"{server.url}/x/shout", json={"text": "the"}).status_code == 401
    answer = httpx.post(f"{server.url}/x/shout", json={"text": "the"}, headers={"Authorization": "Bearer k"})
    assert answer.status_code == 200 and 1 <= answer.json()["tokens"] <= 3
    assert "Traceback" not in server.output


def serve(tiny_model: Path, path: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "server", str(tiny_model), "--load-format", "dummy", "--port", "0", *options]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (MODULE.format(name="bad_routes", path="/v1/models"), "GET /v1/models is registered by the server itself"),
        (
            MODULE.format(name="bad_routes", path="/y").replace("def make(state):", "def make(state):\n    1 / 0"),
            "1 / 0",
        ),
        (
            MODULE.format(name="bad_routes", path="/y").replace('"bad_routes:make"', "1 / 0"),
            "register_routes of plugin",
        ),
        (MODULE.format(name="bad_routes", path="/y").replace("return [hello, shout]", "return 5"), "is no list"),
    ],
)
def test_routes_that_cannot_be_served_stop_the_start(tmp_path, tiny_model, write_package, source, words):
    write_package(tmp_path, "bad_routes", source)
    path = path_with(tmp_path)
    ended = serve(tiny_model, path)
    assert ended.returncode == 1 and words in ended.stderr and "--disable-plugin bad_routes" in ended.stderr
