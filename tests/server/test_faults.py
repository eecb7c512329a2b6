"""Engines killed, clients that stall, servers told to stop under load: real processes, real sockets."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

pytestmark = pytest.mark.alone

MESSAGES = [{"role": "user", "content": "the"}]
ENDLESS = {"max_tokens": 3500, "ignore_eos": True, "stream": True}
STREAMS = {
    "/v1/chat/completions": {"messages": MESSAGES, **ENDLESS},
    "/v1/completions": {"prompt": "the", **ENDLESS},
    "/v1/responses": {"input": "the", "max_output_tokens": 3500, "ignore_eos": True, "stream": True},
    "/v1/messages": {"model": "tiny", "messages": MESSAGES, **ENDLESS},
}
SHORT = {"prompt": "the", "max_tokens": 3}


def engine_pid(server) -> int:
    """The one child that a server process has."""
    pid = server.process.pid
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


def rss_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def wait_for(what, timeout_s: float, every_s: float = 0.05) -> float:
    """Seconds until `what()` was true."""
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < timeout_s, f"not within {timeout_s} s"
        time.sleep(every_s)
    return time.monotonic() - began


def test_an_engine_that_is_killed_comes_back(start_server):
    server = start_server(server={"restart_engine": True})
    generated = [0.0]
    for kill in range(2):
        begun = threading.Barrier(len(STREAMS) + 1)
        ends: dict[str, tuple[float, str]] = {}

        def read(path: str, begun=begun, ends=ends) -> None:
            with httpx.stream("POST", server.url + path, json=STREAMS[path], timeout=60) as answer:
                lines = answer.iter_lines()
                next(lines)
                begun.wait(30)
                rest = [line for line in lines if line]
                ends[path] = (time.monotonic(), "\n".join(rest[-6:]))

        threads = [threading.Thread(target=read, args=(path,)) for path in STREAMS]
        for t in threads:
            t.start()
        begun.wait(30)
        old = engine_pid(server)
        os.kill(old, signal.SIGKILL)
        killed = time.monotonic()
        assert wait_for(lambda: httpx.get(f"{server.url}/health").status_code == 503, 1, 0.01) < 1
        refused = httpx.post(f"{server.url}/v1/completions", json=SHORT)
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "engine_dead"
        for t in threads:
            t.join(10)
        for path in STREAMS:
            when, said = ends[path]
            assert when - killed < 1, path
            assert "error" in said and "engine" in said, (path, said)
        assert "event: response.failed" in ends["/v1/responses"][1]
        assert '"type":"overloaded_error"' in ends["/v1/messages"][1]
        wait_for(lambda: httpx.get(f"{server.url}/health").status_code == 200, 30)
        assert engine_pid(server) != old
        answer = httpx.post(f"{server.url}/v1/completions", json=SHORT, timeout=30)
        assert answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] <= 3
        generated.append(server.metric("backplane:generation_tokens_total"))
        assert server.metric("backplane:num_requests_running") == 0
        assert "started again in" in server.output, kill
    assert generated == sorted(generated), "a counter fell"
    server.stop()
    assert server.process.returncode == 0


def test_without_the_option_a_dead_engine_stays_dead(start_server):
    server = start_server()
    os.kill(engine_pid(server), signal.SIGKILL)
    wait_for(lambda: httpx.get(f"{server.url}/health").status_code == 503, 1, 0.01)
    assert httpx.get(f"{server.url}/live").status_code == 200
    time.sleep(1)
    assert httpx.get(f"{server.url}/health").json()["error"]["code"] == "engine_dead"


def connect(server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def closed_after_s(sock: socket.socket) -> tuple[float, bytes]:
    """Seconds until the other side closed, and what it said."""
    began, said = time.monotonic(), b""
    while piece := sock.recv(65536):
        said += piece
    return time.monotonic() - began, said


def test_clients_that_stall_are_let_go(start_server):
    server = start_server(server={"head_timeout_s": 1.0, "body_timeout_s": 1.0})
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"

    # slow loris: a head that never ends, whether it trickles or stops; nothing at all; a second head on a live connection
    def trickle(sock: socket.socket) -> None:
        for _ in range(40):
            try:
                sock.sendall(b"X-More: 1\r\n")
            except OSError:
                return
            time.sleep(0.1)

    for begin, action in ((head, trickle), (head, None), (b"", None)):
        with connect(server) as sock:
            sock.sendall(begin)
            if action is not None:
                threading.Thread(target=action, args=(sock,), daemon=True).start()
            try:
                after_s, _ = closed_after_s(sock)
                assert 0.5 < after_s < 3
            except ConnectionResetError:  # it was still sending
                pass
    with connect(server) as sock:
        sock.sendall(b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200 OK" in sock.recv(65536)
        sock.sendall(b"GET /live HTTP/1.1\r\n")
        assert closed_after_s(sock)[0] < 3

    # a body that never ends is an answer, not a held connection
    with connect(server) as sock:
        sock.sendall(head + b"Content-Length: 100\r\nConnection: close\r\n\r\n" + b'{"prompt"')
        after_s, said = closed_after_s(sock)
        assert 0.5 < after_s < 3 and b"408" in said.split(b"\r\n")[0] and b"body_timeout" in said

    # a head that is too large
    with connect(server) as sock:
        try:
            sock.sendall(head + b"".join(b"X-%d: %s\r\n" % (i, b"a" * 1000) for i in range(200)) + b"\r\n")
            assert b"400" in closed_after_s(sock)[1].split(b"\r\n")[0]
        except (ConnectionResetError, BrokenPipeError):
            pass

    # many at once take nothing from the others
    with ExitStack() as stack:
        stalled = [stack.enter_context(connect(server)) for _ in range(200)]
        for sock in stalled:
            sock.sendall(head)
        began = time.monotonic()
        assert httpx.post(f"{server.url}/v1/completions", json=SHORT, timeout=30).status_code == 200
        assert time.monotonic() - began < 5
        for sock in stalled:
            assert closed_after_s(sock)[0] < 5
    assert "Traceback" not in server.output


def test_slow_readers_get_all_of_it_in_fewer_events(start_server):
    """Nothing piles up for whoever does not read: deltas merge until they are taken."""
    server = start_server(server={"health_stall_s": 1.0})
    readers: list[socket.socket] = []
    try:
        _read_slowly(server, readers)
    finally:
        for sock in readers:
            sock.close()


def _read_slowly(server, readers: list[socket.socket]) -> None:
    num_tokens, num_readers = 1200, 4
    body = {"prompt": "the", "max_tokens": num_tokens, "ignore_eos": True, "stream": True, "temperature": 0}
    body |= {"logprobs": 5, "return_token_ids": True, "stream_options": {"include_usage": True}}
    whole = httpx.post(
        f"{server.url}/v1/completions", json={**body, "stream": False, "stream_options": None}, timeout=60
    ).json()["choices"][0]
    before = rss_mib(server.process.pid)
    raw = json.dumps(body).encode()
    for _ in range(num_readers):
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        host, port = server.url.removeprefix("http://").split(":")
        sock.connect((host, int(port)))
        sock.settimeout(60)
        sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n")
        sock.sendall(b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(raw) + raw)
        readers.append(sock)
    # the engine does not wait for them
    wait_for(lambda: server.metric("vllm:num_requests_running") >= num_readers, 10)
    wait_for(lambda: server.metric("vllm:num_requests_running") == 0, 60)
    assert rss_mib(server.process.pid) - before < 100
    time.sleep(1.2)
    assert httpx.get(f"{server.url}/health").status_code == 200  # who does not read is not the engine's fault
    for sock in readers:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)  # awake now
        _, said = closed_after_s(sock)
        events = [json.loads(line.removeprefix(b"data: ")) for line in said.split(b"\n") if line.startswith(b"data: {")]
        ids = [t for e in events for c in e["choices"] for t in c["token_ids"]]
        text = "".join(c["text"] for e in events for c in e["choices"])
        assert ids == whole["token_ids"] and text == whole["text"]
        assert events[-1]["usage"]["completion_tokens"] == num_tokens
        assert len(events) < num_tokens * 0.8, "no deltas were merged"


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_stop_under_load_loses_nothing_that_was_accepted(start_server, num_processes):
    server = start_server(engine={"max_num_seqs": 16}, server={"api_server_count": num_processes})
    results: list[tuple[str, int]] = []
    stopped = threading.Event()

    def client(number: int) -> None:
        # all kinds of request, one after the other, until the server is gone
        body = {"prompt": "the engine", "max_tokens": 60, "ignore_eos": True, "stream": number % 2 == 0}
        with httpx.Client(base_url=server.url, timeout=60) as http:
            while True:
                try:
                    if not body["stream"]:
                        answer = http.post("/v1/completions", json=body)
                        tokens = answer.json()["usage"]["completion_tokens"] if answer.status_code == 200 else 0
                        results.append((str(answer.status_code), tokens))
                    else:
                        options = {**body, "stream_options": {"include_usage": True}}
                        with http.stream("POST", "/v1/completions", json=options) as answer:
                            lines = [line for line in answer.iter_lines() if line.startswith("data: {")]
                            ok = answer.status_code == 200
                            tokens = json.loads(lines[-1][6:])["usage"]["completion_tokens"] if ok else 0
                            results.append((str(answer.status_code), tokens))
                    if answer.status_code == 503:
                        return
                except (httpx.ConnectError, httpx.RemoteProtocolError, httpx.ReadError) as error:
                    # allowed only where nothing had been accepted: the listening socket or an idle connection closed
                    assert stopped.is_set(), error
                    results.append((type(error).__name__, 0))
                    return

    threads = [threading.Thread(target=client, args=(i,)) for i in range(24)]
    for t in threads:
        t.start()
    wait_for(lambda: sum(r == ("200", 60) for r in list(results)) > 30, 60)
    stopped.set()
    server.process.send_signal(signal.SIGTERM)
    for t in threads:
        t.join(60)
    assert server.process.wait(20) == 0
    answered = [r for r in results if r[0] == "200"]
    assert all(tokens == 60 for _, tokens in answered), "an accepted request was cut"
    assert {r[0] for r in results} <= {"200", "503", "ConnectError", "RemoteProtocolError", "ReadError"}
    assert any(r[0] == "503" for r in results)
    assert "did not finish in time" not in server.output and "Traceback" not in server.output


def test_a_server_out_of_descriptors_goes_on_when_it_has_some(start_server):
    server = start_server()
    pid = server.process.pid
    used = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 20, hard))
    with ExitStack() as stack:
        for _ in range(60):
            stack.enter_context(connect(server))
        wait_for(lambda: "raise the limit of open files" in server.output, 5)
        ticks = Path(f"/proc/{pid}/stat").read_text().split()
        time.sleep(0.5)
        more = Path(f"/proc/{pid}/stat").read_text().split()
        assert int(more[13]) - int(ticks[13]) < 25, "it turns in a loop while it can take no connection"
    assert httpx.post(f"{server.url}/v1/completions", json=SHORT, timeout=10).status_code == 200
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
    server.stop()
    assert server.process.returncode == 0
