"""Many streams at once from one process: a client that costs little, so that the server is what is measured.

It counts server-sent events in the bytes as they come, and notes when they came; it parses no JSON while it runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


@dataclass(slots=True)
class Totals:
    """Of all streams together."""

    events: int = 0
    finished: int = 0
    tokens: int = 0
    """As the server's usage says"""
    errors: list[str] = field(default_factory=list)
    gaps_s: array[float] = field(default_factory=lambda: array("d"))
    """Between two arrivals of a stream; tokens that arrive together are one arrival"""
    first_s: array[float] = field(default_factory=lambda: array("d"))


class _Stream(asyncio.Protocol):
    """One connection: sends its request, again and again while `more()` says so."""

    def __init__(self, head: bytes, totals: Totals, more: Any) -> None:
        self._head, self._totals, self._more = head, totals, more
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tail = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._send()

    def _send(self) -> None:
        request = self._more()
        if request is None:
            self._end()
            return
        self._begun_s = time.perf_counter()
        self._last_s = 0.0
        self._tail = b""
        self._transport.write(self._head % len(request) + request)

    def data_received(self, data: bytes) -> None:
        now_s = time.perf_counter()
        totals = self._totals
        if not self._last_s:
            status = data[9:12]
            if status != b"200":
                totals.errors.append(data[:300].decode(errors="replace"))
                return self._end()
            totals.first_s.append(now_s - self._begun_s)
        else:
            totals.gaps_s.append(now_s - self._last_s)
        self._last_s = now_s
        totals.events += data.count(b"data: {")
        self._tail = (self._tail + data)[-600:] if len(data) < 600 else data[-600:]
        if self._tail.endswith(b"0\r\n\r\n") and b"data: [DONE]" in self._tail:
            usage = re.search(rb'"completion_tokens":(\d+)', self._tail)
            if b'data: {"error"' in self._tail or usage is None:
                totals.errors.append(self._tail.decode(errors="replace"))
                return self._end()
            totals.finished += 1
            totals.tokens += int(usage[1])
            self._send()
        return None

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self._totals.errors.append(f"connection lost: {error}")
            self.done.set_result(None)

    def _end(self) -> None:
        if not self.done.done():
            self.done.set_result(None)
        self._transport.close()


async def run(port: int, path: str, num_streams: int, requests: Iterator[dict[str, Any]], seconds: float) -> Totals:
    """Streams that each send the next of `requests` until the time is over, and end what they have begun."""
    totals = Totals()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    ).encode()
    end_s = time.perf_counter() + seconds

    def more() -> bytes | None:
        if time.perf_counter() >= end_s:
            return None
        request = next(requests, None)
        return None if request is None else json.dumps(request).encode()

    loop = asyncio.get_running_loop()
    streams = []
    for _ in range(num_streams):
        _, stream = await loop.create_connection(lambda: _Stream(head, totals, more), "127.0.0.1", port)
        streams.append(stream)
    await asyncio.gather(*(s.done for s in streams))
    return totals


def quantile(values: array[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else 0.0


class Server:
    """A process that serves on a free port and prints the address, and its children."""

    def __init__(self, command: list[str], env: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, cwd=ROOT
        )
        self.lines: list[str] = []
        self._found = threading.Event()
        self.port = 0
        threading.Thread(target=self._read, daemon=True).start()
        if not self._found.wait(120) or not self.port:
            raise SystemExit("the server did not start:\n" + "".join(self.lines))

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if match := re.search(r"^serving .* on http://[\d.]+:(\d+)", line):
                self.port = int(match[1])
                self._found.set()
        self._found.set()

    def pids(self) -> list[int]:
        """Itself first."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [pid, *map(int, children)]

    def rss_mib(self) -> dict[str, float]:
        """Resident memory of each process."""
        found = {}
        for pid in self.pids():
            command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            name = (
                "engine" if "core.engine.process" in command else "worker" if "server.worker" in command else "server"
            )
            size = int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) / 1024
            found[name] = round(found.get(name, 0.0) + size, 1)
        return found

    def cpu_s(self, *pids: int) -> float:
        """Processor time of these processes; of all of them."""
        total = 0.0
        for pid in pids or self.pids():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return total

    def stop(self) -> int:
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(30)
        self.process.kill()
        return self.process.wait()
