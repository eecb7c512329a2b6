"""Our server beside the same streaming handler on FastAPI and pydantic, both over the same engine process without a model.

python benchmarks/fastapi_compare.py [--seconds 3] [--step-ms 20]

The engine steps every 20 ms, so a stream should get 50 events of one token a second. A server that does not keep up merges tokens
into fewer events, and looks no slower in tokens; so the streams are made more and more, and what counts is the most tokens a
second that still come in an event each (SHARE of them). Both servers take turns at every level: the machine is shared.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import time
from collections.abc import Iterator
from typing import Any

import noop
import uvloop
from machine import write
from streams import Server, quantile, run

LEVELS = (64, 96, 128, 160, 192, 256, 320, 384, 512)
"""Streams at once."""
SHARE = 0.95


def requests(rng: random.Random) -> Iterator[dict[str, Any]]:
    for _ in itertools.count():
        yield {
            "messages": [
                {"role": "user", "content": rng.choice(("Hello!", "What is block_size?", "What can you do?"))}
            ],
            "max_tokens": 100,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }


def measure(server: Server, num_streams: int, seconds: float) -> dict[str, float]:
    pid = server.pids()[0]
    begun, cpu_s = time.perf_counter(), server.cpu_s(pid)
    totals = uvloop.run(run(server.port, "/v1/chat/completions", num_streams, requests(random.Random(0)), seconds))
    took_s, cpu_s = time.perf_counter() - begun, server.cpu_s(pid) - cpu_s
    if totals.errors:
        raise SystemExit(f"{len(totals.errors)} streams failed: {totals.errors[0]}")
    return {
        "tokens_per_s": round(totals.tokens / took_s),
        # the first and the last two events of a stream carry no token
        "events_a_token": round((totals.events - 3 * totals.finished) / totals.tokens, 3),
        "cpu_us_per_event": round(1e6 * cpu_s / totals.events, 1),
        "gap_p99_ms": round(1e3 * quantile(totals.gaps_s, 0.99), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--step-ms", type=float, default=20)
    options = parser.parse_args()
    env = noop.environment(options.step_ms)
    ours = ["-m", "server", "demo", "--port", "0", "--executor", "noop", "--max-num-seqs", "1024"]
    servers = {"backplane": Server(ours, env), "fastapi": Server(["benchmarks/fastapi_app.py", "noop"], env)}
    levels: dict[str, dict[int, dict[str, float]]] = {name: {} for name in servers}
    try:
        for server in servers.values():
            measure(server, 16, 1.0)
        for num_streams in LEVELS:
            for name, server in servers.items():
                levels[name][num_streams] = measure(server, num_streams, options.seconds)
    finally:
        for server in servers.values():
            server.stop()
    best = {
        name: max((f["tokens_per_s"] for f in found.values() if f["events_a_token"] >= SHARE), default=0.0)
        for name, found in levels.items()
    }
    cpu = [levels["fastapi"][n]["cpu_us_per_event"] / levels["backplane"][n]["cpu_us_per_event"] for n in LEVELS]
    write(
        "fastapi_compare",
        {
            "step_ms": options.step_ms,
            "streams": levels,
            "tokens_per_s_one_an_event": best,
            "ratio": round(best["backplane"] / best["fastapi"], 2),
            "cpu_ratio": round(statistics.median(cpu), 2),
        },
    )


if __name__ == "__main__":
    main()
