"""`--api-server-count`: several server processes, one engine, one port; any of them killed at any time."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

pytestmark = pytest.mark.alone

BODY = {"prompt": "the engine", "max_tokens": 40, "ignore_eos": True, "stream": True, "temperature": 0}
SHORT = {"prompt": "the", "max_tokens": 3, "ignore_eos": True}


def children(server) -> dict[str, list[int]]:
    """Processes of a server by what they are: server processes and the engine."""
    pid = server.process.pid
    found: dict[str, list[int]] = {"worker": [], "engine": []}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        try:
            command = Path(f"/proc/{child}/cmdline").read_text()
        except OSError:
            continue
        for kind, module in (("worker", "server.worker"), ("engine", "core.engine.process")):
            if module in command:
                found[kind].append(int(child))
    return found


def num_sockets(pid: int) -> int:
    links = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            links.append(os.readlink(entry))
        except OSError:
            continue
    return sum(link.startswith("socket:") for link in links)


def wait_for(what, timeout_s: float, every_s: float = 0.05) -> float:
    """Seconds until `what()` was true."""
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < timeout_s, f"not within {timeout_s} s"
        time.sleep(every_s)
    return time.monotonic() - began


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def scrapes(server, name: str, times: int = 8) -> set[float]:
    """A metric as several connections, and so both server processes, tell it."""
    return {server.metric(name) for _ in range(times)}


def test_they_share_the_work_and_the_counts(start_server):
    server = start_server(server={"api_server_count": 2})
    workers = children(server)["worker"]
    assert len(workers) == 2 and len(children(server)["engine"]) == 1
    host, port = server.url.removeprefix("http://").split(":")
    before = [num_sockets(pid) for pid in workers]
    idle = [socket.create_connection((host, int(port))) for _ in range(40)]
    try:
        wait_for(lambda: sum(map(num_sockets, workers)) == sum(before) + 40, 5)
        assert min(num_sockets(pid) - b for pid, b in zip(workers, before, strict=True)) >= 5
    finally:
        for sock in idle:
            sock.close()
    whole = httpx.post(f"{server.url}/v1/completions", json={**BODY, "stream": False}).json()["choices"][0]["text"]
    for i in range(24):  # a connection each
        if i % 2:
            assert (
                httpx.post(f"{server.url}/v1/completions", json={**BODY, "stream": False}).json()["choices"][0]["text"]
                == whole
            )
            continue
        with httpx.stream("POST", f"{server.url}/v1/completions", json=BODY) as answer:
            lines = [line[6:] for line in answer.iter_lines() if line.startswith("data: {")]
        assert "".join(json.loads(line)["choices"][0]["text"] for line in lines) == whole
    wait_for(lambda: scrapes(server, "vllm:generation_tokens_total") == {1000.0}, 3)
    assert scrapes(server, "vllm:e2e_request_latency_seconds_count") == {25.0}
    assert scrapes(server, "vllm:inter_token_latency_seconds_count") == {12 * 39}
    text = httpx.get(f"{server.url}/metrics").text
    assert re.search(r'vllm:request_success_total\{finished_reason="length",model_name="tiny"\} 25.0', text)
    for _ in range(6):
        assert httpx.get(f"{server.url}/health").status_code == 200
        assert httpx.get(f"{server.url}/v1/models").json()["data"][0]["id"] == "tiny"
    # a second server is not let in on the port
    code = (
        "from core.config import EngineConfig; from server.config import ServerConfig; from server.launch import bind_all\n"
        f"bind_all(ServerConfig(port={port}, api_server_count=2))"
    )
    second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f"{host}:{port} is in use" in second.stderr
    server.stop()
    assert server.process.returncode == 0 and not any(map(alive, workers)) and "Traceback" not in server.output


def test_one_is_killed_under_load(start_server):
    server = start_server(server={"api_server_count": 2}, engine={"max_num_seqs": 64})
    (engine,) = children(server)["engine"]
    victim, survivor = children(server)["worker"]
    killed = threading.Event()
    outcomes: list[str] = []
    health: list[int] = []
    done = threading.Event()

    def client(number: int) -> None:
        # streams until some time after the kill; a connection that breaks is the dead process's
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and not done.is_set():
            tokens = 0
            try:
                body = {**BODY, "max_tokens": 150, "stream_options": {"include_usage": True}}
                with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=30) as answer:
                    for line in answer.iter_lines():
                        if line.startswith("data: {"):
                            tokens = (json.loads(line[6:])["usage"] or {}).get("completion_tokens", 0)
                outcomes.append("whole" if answer.status_code == 200 and tokens == 150 else f"{answer.status_code}")
            except httpx.TransportError as error:
                outcomes.append("broken" if killed.is_set() else f"{error!r} before the kill")

    def watch() -> None:
        while not done.is_set():
            try:
                health.append(httpx.get(f"{server.url}/health", timeout=30).status_code)
            except httpx.TransportError:
                health.append(0)  # it was in the dead process's hands
            time.sleep(0.05)

    threads = [threading.Thread(target=client, args=(i,)) for i in range(16)]
    threads.append(threading.Thread(target=watch))
    for t in threads:
        t.start()
    try:
        wait_for(lambda: outcomes.count("whole") >= 16, 30)
        finished = server.metric("vllm:request_success_total")
        killed.set()
        os.kill(victim, signal.SIGKILL)
        back_s = wait_for(lambda: len(children(server)["worker"]) == 2, 5, 0.01)
        wait_for(lambda: "is started again" in server.output, 2)
        wholes = outcomes.count("whole")
        wait_for(lambda: outcomes.count("whole") >= wholes + 32, 30)
    finally:
        done.set()
        for t in threads:
            t.join(40)
    assert 1 <= outcomes.count("broken") <= 16 and set(outcomes) == {"whole", "broken"}
    assert set(health) <= {200, 0} and health.count(0) <= 1
    assert back_s < 2 and f"(pid {victim}) ended with status -9" in server.output
    assert children(server)["engine"] == [engine] and survivor in children(server)["worker"]
    # nothing of the dead process's requests is left in the engine, and no count fell
    server.wait_idle(5)
    assert scrapes(server, "vllm:kv_cache_usage_perc") == {0.0}
    assert scrapes(server, "backplane:server_restarts_total") == {1.0}
    assert min(scrapes(server, "vllm:request_success_total")) >= finished
    # a server process that starts when the engine is dead says so
    os.kill(engine, signal.SIGKILL)
    os.kill(survivor, signal.SIGKILL)
    wait_for(lambda: len(children(server)["worker"]) == 2 and survivor not in children(server)["worker"], 5)
    wait_for(lambda: {httpx.get(f"{server.url}/health", timeout=30).status_code for _ in range(8)} == {503}, 10)
    assert httpx.post(f"{server.url}/v1/completions", json=SHORT).json()["error"]["code"] == "engine_dead"
    server.stop()
    assert server.process.returncode == 0


def test_the_engine_is_killed(start_server):
    server = start_server(server={"api_server_count": 2, "restart_engine": True})
    ends: list[str] = []

    def read() -> None:
        with httpx.stream("POST", f"{server.url}/v1/completions", json={**BODY, "max_tokens": 3500}, timeout=60) as s:
            ends.append("\n".join(s.iter_lines())[-400:])

    threads = [threading.Thread(target=read) for _ in range(8)]
    for t in threads:
        t.start()
    wait_for(lambda: server.metric("vllm:num_requests_running") == 8, 10)
    for pid in children(server)["engine"]:
        os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    states = [httpx.get(f"{server.url}/health").status_code for _ in range(10) if time.sleep(0.02) is None]
    assert states[-1] == 503
    for t in threads:
        t.join(5)
    assert time.monotonic() - killed < 2 and len(ends) == 8
    assert all("error" in end and "[DONE]" in end for end in ends)
    wait_for(lambda: {httpx.get(f"{server.url}/health").status_code for _ in range(8)} == {200}, 20)
    assert {httpx.post(f"{server.url}/v1/completions", json=SHORT).status_code for _ in range(8)} == {200}
    assert scrapes(server, "backplane:engine_restarts_total") == {1.0}
    server.stop()
    assert server.process.returncode == 0


def test_without_the_supervisor_nothing_is_left(start_server):
    server = start_server(server={"api_server_count": 2})
    everyone = [pid for pids in children(server).values() for pid in pids]
    assert len(everyone) == 3
    server.process.kill()
    server.process.wait()
    wait_for(lambda: not any(map(alive, everyone)), 3)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/live")


def test_tls_on_a_unix_socket(start_server, tmp_path):
    import ssl

    import trustme

    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    certificate.private_key_pem.write_to_path(str(key))
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(str(cert), append=True)
    path = str(tmp_path / "engine.sock")
    options = {"api_server_count": 2, "uds": path, "ssl_certfile": str(cert), "ssl_keyfile": str(key)}
    server = start_server(server=options)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    for _ in range(8):
        transport = httpx.HTTPTransport(uds=path, verify=context)
        with httpx.Client(transport=transport, base_url="https://localhost") as client:
            assert client.post("/v1/completions", json=SHORT).json()["usage"]["completion_tokens"] == 3
    server.stop()
    assert server.process.returncode == 0 and not os.path.exists(path)


def test_what_a_server_process_cannot_start_with_is_said(tiny_model, tmp_path):
    bad = tmp_path / "bad.pem"
    bad.write_text("no certificate")
    engine = {"model": str(tiny_model), "load_format": "dummy", "num_threads": 1, "num_blocks": 512}
    options = {"port": 0, "api_server_count": 2, "ssl_certfile": str(bad), "ssl_keyfile": str(bad)}
    code = (
        "from core.config import EngineConfig; from server.config import ServerConfig; from server.launch import serve\n"
        f"serve(EngineConfig.from_options(**{engine!r}), ServerConfig(**{options!r}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 1 and "ended with status 1: SSLError" in run.stderr.splitlines()[-1]
