"""Ten thousand requests at once: all answered, or refused with a time to come back; and nothing left of them."""

from __future__ import annotations

import asyncio
import json
import resource
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.alone


class _Request(asyncio.Protocol):
    """One request on a connection of its own; `answer` gets the bytes of the whole response."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._data = b""
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        transport.write(self._raw)

    def data_received(self, data: bytes) -> None:
        self._data += data

    def connection_lost(self, error: Exception | None) -> None:
        if not self.answer.done():
            self.answer.set_result(self._data if error is None else f"lost: {error}".encode())


async def all_at_once(url: str, count: int, body: dict[str, Any]) -> tuple[list[bytes], int]:
    """The answers, and the most requests that were sent and not answered at a time."""
    host, port = url.removeprefix("http://").split(":")
    text = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {len(text)}\r\n\r\n"
    loop = asyncio.get_running_loop()
    gate = asyncio.Semaphore(500)  # connections being opened, not requests

    in_flight = most = 0

    async def one() -> bytes:
        nonlocal in_flight, most
        async with gate:
            _, request = await loop.create_connection(lambda: _Request(head.encode() + text), host, int(port))
        in_flight += 1
        most = max(most, in_flight)
        try:
            return await request.answer
        finally:
            in_flight -= 1

    return list(await asyncio.gather(*(one() for _ in range(count)))), most


def rss_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) / 1024


@pytest.fixture
def many_files():
    """As many descriptors as the system lets us have, here and in the processes that start from here."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 12_000:
        pytest.skip(f"10,000 connections need more open files than {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_ten_thousand_in_flight(start_server, many_files):
    server = start_server(engine={"max_num_seqs": 512, "max_queued_requests": 20_000, "max_model_len": 256})
    # long enough that the first are not done while the last ones still connect
    body = {"prompt": [5, 6, 7], "max_tokens": 60, "ignore_eos": True}
    began = time.monotonic()
    answers, most = asyncio.run(all_at_once(server.url, 10_000, body))
    took_s = time.monotonic() - began
    assert Counter(a.split(b"\r\n")[0] for a in answers) == {b"HTTP/1.1 200 OK": 10_000}
    assert all(b'"completion_tokens":60' in a for a in answers)
    assert took_s < 60 and most > 5_000
    server.wait_idle(5)
    assert server.metric("vllm:e2e_request_latency_seconds_count") == 10_000
    assert server.metric("vllm:kv_cache_usage_perc") == 0
    # what was needed for the first wave serves the next ones
    after = rss_mib(server.process.pid)
    asyncio.run(all_at_once(server.url, 300, body))
    assert rss_mib(server.process.pid) < after * 1.05
    assert "Traceback" not in server.output


def test_a_full_queue_refuses_by_429(start_server):
    server = start_server(engine={"max_num_seqs": 4, "max_queued_requests": 100})
    body = {"prompt": [5, 6, 7], "max_tokens": 8, "ignore_eos": True}
    answers, _ = asyncio.run(all_at_once(server.url, 900, body))
    kinds = Counter(a.split(b"\r\n")[0] for a in answers)
    assert set(kinds) == {b"HTTP/1.1 200 OK", b"HTTP/1.1 429 Too Many Requests"}, kinds
    assert kinds[b"HTTP/1.1 200 OK"] >= 104
    for refused in (a for a in answers if b" 429 " in a[:20]):
        head, _, text = refused.partition(b"\r\n\r\n")
        assert int(head.lower().split(b"retry-after: ")[1].split(b"\r\n")[0]) >= 1
        assert json.loads(text)["error"]["code"] == "queue_full"
    server.wait_idle(5)
    assert b"200 OK" in asyncio.run(all_at_once(server.url, 1, body))[0][0]
