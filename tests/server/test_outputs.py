"""Logs that go to a full disk, to nobody, or nowhere: the server goes on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

SHORT = {"prompt": "the", "max_tokens": 3, "ignore_eos": True}


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def command(model: Path, port: int, count: int) -> str:
    engine = {"model": str(model), "load_format": "dummy", "num_threads": 1, "num_blocks": 512}
    server = {"port": port, "access_log": True, "api_server_count": count}
    return (
        "from core.config import EngineConfig; from server.config import ServerConfig; from server.launch import serve\n"
        f"serve(EngineConfig.from_options(**{engine!r}), ServerConfig(**{server!r}))"
    )


OUTPUTS = {
    "full": "exec {python} -c {code} >/dev/full 2>/dev/full",
    "closed": "exec {python} -c {code} <&- >&- 2>&-",
    "no reader": "{python} -c {code} 2>&1 | exec true",
}


@pytest.mark.parametrize(("outputs", "count"), [("full", 2), ("closed", 1), ("no reader", 1)])
def test_a_server_without_outputs(tiny_model, tmp_path, outputs, count):
    port = free_port()
    code = tmp_path / "code.py"
    code.write_text(command(tiny_model, port, count))
    shell = OUTPUTS[outputs].format(python=sys.executable, code=f"'exec(open(\"{code}\").read())'")
    process = subprocess.Popen(["/bin/bash", "-c", shell], start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 40
        while True:
            assert process.poll() is None or outputs == "no reader", process.returncode
            assert time.monotonic() < deadline, "it did not start"
            try:
                if httpx.get(f"{url}/ready").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.05)
        for i in range(20):  # each writes a line of the access log, or cannot
            assert httpx.post(f"{url}/v1/completions", json=SHORT).json()["usage"]["completion_tokens"] == 3
            assert httpx.post(f"{url}/v1/completions", content=b"{").status_code == 400, i
        lines = []
        with httpx.stream("POST", f"{url}/v1/completions", json={**SHORT, "max_tokens": 50, "stream": True}) as answer:
            lines = [line for line in answer.iter_lines() if line]
        assert lines[-1] == "data: [DONE]" and all(line.startswith("data: ") for line in lines)
        assert httpx.get(f"{url}/health").status_code == 200
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        code_ = process.wait(20)
    if outputs != "no reader":  # there the shell's last command says it
        assert code_ == 0
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            httpx.get(f"{url}/live")
        except httpx.ConnectError:
            break
        except httpx.TransportError:  # it came while the server closed
            continue
        time.sleep(0.05)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/live")


def test_the_engine_s_last_words_reach_the_server_whatever_its_outputs(tiny_model, tmp_path):
    """Its traceback cannot be written, its error still comes."""
    (tmp_path / "broken_executor.py").write_text(
        "from core.hookspecs import hookimpl\n"
        "@hookimpl\n"
        "def register_executors(register): register('broken', 'broken_executor:Broken')\n"
        "class Broken:\n"
        "    def __init__(self, config, registry): raise RuntimeError('no such device')\n"
    )
    metadata = tmp_path / "broken-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[backplane.plugins]\nbroken = broken_executor\n")
    code = tmp_path / "code.py"
    code.write_text(
        "import asyncio, sys\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "from core.config import EngineConfig; from core.engine.async_engine import AsyncEngine\n"
        "async def main():\n"
        f"    config = EngineConfig.from_options(model={str(tiny_model)!r}, executor='broken')\n"
        "    try:\n"
        "        await AsyncEngine(config).start()\n"
        "    except Exception as error:\n"
        "        print(type(error).__name__, error)\n"
        "asyncio.run(main())\n"
    )
    shell = f"exec {sys.executable} -c 'exec(open(\"{code}\").read())' 2>/dev/full"
    run = subprocess.run(["/bin/bash", "-c", shell], capture_output=True, text=True, timeout=60)
    assert run.stdout == "EngineDeadError the engine could not start: RuntimeError: no such device\n", run
