"""Tokens a second through HTTP streaming with 64 clients, over the same engine offline, on this machine's cores.

python benchmarks/http_overhead.py [MODEL]
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from machine import write

from core import Engine, SamplingParams

CLIENTS, INPUT, OUTPUT = 64, 64, 128


def offline(model: str) -> float:
    rng = random.Random(0)
    params = SamplingParams(temperature=0, max_tokens=OUTPUT, ignore_eos=True)
    with Engine(model) as engine:
        best = 0.0
        for _ in range(3):
            prompts = [[rng.randrange(10, 4000) for _ in range(INPUT)] for _ in range(CLIENTS)]
            begun = time.perf_counter()
            engine.generate(prompts, params, use_tqdm=False)
            best = max(best, CLIENTS * OUTPUT / (time.perf_counter() - begun))
        return best


def online(model: str, port: int = 8765) -> tuple[float, float, dict[str, object]]:
    begun = time.perf_counter()
    server = subprocess.Popen([sys.executable, "-m", "server", model, "--port", str(port)], stderr=subprocess.DEVNULL)
    try:
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=1)
                break
            except OSError:
                time.sleep(0.05)
        ready_s = time.perf_counter() - begun
        best: dict[str, object] = {}
        for seed in range(3):
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "figures.json"
                subprocess.run(
                    [
                        sys.executable,
                        "-c",
                        "from server.cli.main import main; main()",
                        "bench",
                        "serve",
                        "--url",
                        f"http://127.0.0.1:{port}/v1",
                        "--num-prompts",
                        str(CLIENTS),
                        "--max-concurrency",
                        str(CLIENTS),
                        "--input-len",
                        str(INPUT),
                        "--output-len",
                        str(OUTPUT),
                        "--seed-of-prompts",
                        str(seed),
                        "--json",
                        str(out),
                    ],
                    check=True,
                    stdout=subprocess.DEVNULL,
                )
                figures = json.loads(out.read_text())
                if not best or figures["output_tokens_per_s"] > best["output_tokens_per_s"]:
                    best = figures
        return float(best["output_tokens_per_s"]), ready_s, best  # type: ignore[arg-type]
    finally:
        server.terminate()
        server.wait(30)


if __name__ == "__main__":
    model = sys.argv[1] if len(sys.argv) > 1 else "demo"
    through, ready_s, figures = online(model)
    alone = offline(model)
    write(
        "http_overhead",
        {
            "model": model,
            "clients": CLIENTS,
            "offline_tok_s": round(alone),
            "http_tok_s": round(through),
            "ratio": round(through / alone, 3),
            "ready_s": round(ready_s, 2),
            "figures": figures,
        },
    )
