"""1,000 streams at once for a minute: errors, memory from beginning to end, the gap between tokens.

python benchmarks/load.py [--model demo|noop] [--streams 1000] [--seconds 60] [--servers 1] [--step-ms 20] [--most-tokens 256]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import resource
import time
from collections.abc import Iterator
from typing import Any

import noop
import uvloop
from machine import write
from streams import Server, quantile, run

MESSAGES = ("What is block_size?", "Hello!", "What can you do?", "How do I start the server?", "Tell me a story.")


def requests(rng: random.Random, most_tokens: int) -> Iterator[dict[str, Any]]:
    for _ in itertools.count():
        yield {
            "messages": [{"role": "user", "content": rng.choice(MESSAGES)}],
            "max_tokens": rng.randrange(8, most_tokens),
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }


async def measure(server: Server, num_streams: int, seconds: float, most_tokens: int) -> dict[str, Any]:
    memory: list[dict[str, Any]] = []
    begun = time.perf_counter()

    async def watch() -> None:
        for part in range(13):
            await asyncio.sleep(max(0.0, begun + part * seconds / 12 - time.perf_counter()))
            memory.append({"s": round(time.perf_counter() - begun, 1), **server.rss_mib()})

    watching = asyncio.create_task(watch())
    cpu_s = server.cpu_s()
    totals = await run(
        server.port, "/v1/chat/completions", num_streams, requests(random.Random(0), most_tokens), seconds
    )
    took_s = time.perf_counter() - begun
    cpu_s = server.cpu_s() - cpu_s
    await watching
    await asyncio.sleep(1)
    return {
        "streams": num_streams,
        "seconds": round(took_s, 1),
        "requests": totals.finished,
        "errors": len(totals.errors),
        "first_errors": totals.errors[:3],
        "output_tokens_per_s": round(totals.tokens / took_s),
        "server_cpu_share": round(cpu_s / took_s, 2),
        "gap_ms": {f"p{round(100 * q)}": round(1e3 * quantile(totals.gaps_s, q), 1) for q in (0.5, 0.9, 0.99)},
        "longest_gap_ms": round(1e3 * max(totals.gaps_s, default=0.0), 1),
        "first_token_ms": {f"p{round(100 * q)}": round(1e3 * quantile(totals.first_s, q)) for q in (0.5, 0.99)},
        "rss_mib": memory,
        "rss_mib_after": server.rss_mib(),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=("demo", "noop"), default="demo")
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--servers", type=int, default=1)
    parser.add_argument("--most-tokens", type=int, default=256, help="of an answer; a small model on two cores: 48")
    parser.add_argument("--step-ms", type=float, default=20, help="of noop")
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    command = ["-m", "server", "demo", "--port", "0", "--max-num-seqs", str(max(1024, options.streams))]
    command += ["--api-server-count", str(options.servers)]
    if options.model == "noop":
        command += ["--executor", "noop"]
    server = Server(command, noop.environment(options.step_ms))
    try:
        figures = uvloop.run(measure(server, options.streams, options.seconds, options.most_tokens))
    finally:
        code = server.stop()
    name = f"load_{options.model}" + (f"_{options.servers}_servers" if options.servers > 1 else "")
    model = "demo" if options.model == "demo" else f"no-op, {options.step_ms:g} ms a step"
    write(name, {"model": model, "server_processes": options.servers, **figures, "exit_status": code})


if __name__ == "__main__":
    main()
