"""Tokens a second through HTTP streaming with 64 clients, over the same engine offline, on this machine's cores.

python benchmarks/http_overhead.py [MODEL] [--rounds 3]

Rounds of both are interleaved, and the median of the rounds' ratios counts: the machine may have other work too.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Iterator
from typing import Any

import uvloop
from machine import write
from streams import Server, quantile, run

from core import Engine, SamplingParams

CLIENTS, INPUT, OUTPUT = 64, 64, 128


def prompts(seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(10, 4000) for _ in range(INPUT)] for _ in range(CLIENTS)]


def offline(engine: Engine, seed: int) -> float:
    params = SamplingParams(temperature=0, max_tokens=OUTPUT, ignore_eos=True)
    begun = time.perf_counter()
    engine.generate(prompts(seed), params, use_tqdm=False)
    return CLIENTS * OUTPUT / (time.perf_counter() - begun)


def bodies(seed: int) -> Iterator[dict[str, Any]]:
    for prompt in prompts(seed):
        body = {"prompt": prompt, "max_tokens": OUTPUT, "temperature": 0, "ignore_eos": True, "stream": True}
        yield body | {"stream_options": {"include_usage": True}}


def online(server: Server, seed: int) -> dict[str, float]:
    begun = time.perf_counter()
    totals = uvloop.run(run(server.port, "/v1/completions", CLIENTS, bodies(seed), 600))
    took_s = time.perf_counter() - begun
    if totals.errors or totals.tokens != CLIENTS * OUTPUT:
        raise SystemExit(f"{totals.tokens} tokens, {len(totals.errors)} errors: {totals.errors[:1]}")
    return {
        "tok_s": totals.tokens / took_s,
        "events": totals.events,
        "first_token_p50_ms": 1e3 * quantile(totals.first_s, 0.5),
        "gap_p99_ms": 1e3 * quantile(totals.gaps_s, 0.99),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    begun = time.perf_counter()
    server = Server(["-m", "server", options.model, "--port", "0"])
    ready_s = time.perf_counter() - begun
    rounds = []
    try:
        with Engine(options.model) as engine:
            offline(engine, 0)
            online(server, 0)
            for i in range(1, options.rounds + 1):
                rounds.append((online(server, 2 * i), offline(engine, 2 * i + 1)))
    finally:
        server.stop()
    median = {key: round(statistics.median(r[0][key] for r in rounds), 1) for key in rounds[0][0]}
    write(
        "http_overhead",
        {
            "model": options.model,
            "clients": CLIENTS,
            "rounds": options.rounds,
            "offline_tok_s": round(statistics.median(r[1] for r in rounds)),
            "http": median,
            "ratio": round(statistics.median(r[0]["tok_s"] / r[1] for r in rounds), 3),
            "ratios": [round(r[0]["tok_s"] / r[1], 3) for r in rounds],
            "ready_s": round(ready_s, 2),
        },
    )


if __name__ == "__main__":
    main()
