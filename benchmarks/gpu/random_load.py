"""Random load on a nearly full card: long prompts, preemption, cancellations; and samples that must come out the same.

    python benchmarks/gpu/random_load.py --seconds 300

In deterministic mode a sample of requests runs on the idle engine first, then each again and again under load: the tokens
must be equal to the last one. Fails on any error, any difference, a block that is not given back. Random weights.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import workloads

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

SAMPLES = 10


class Load:
    def __init__(self, engine: Any, seed: int) -> None:
        self.engine, self.rng = engine, random.Random(seed)
        self.counts = {"finished": 0, "cancelled": 0, "output_tokens": 0, "input_tokens": 0, "samples_under_load": 0}
        self.errors: list[str] = []
        self.number = 0

    def prompt(self) -> list[int]:
        """Mostly short, some very long; a fifth begins like another."""
        rng = self.rng
        length = rng.choice([rng.randint(1, 400), rng.randint(400, 3000), rng.randint(3000, 16000)])
        own = random.Random(rng.randrange(20) if rng.random() < 0.2 else rng.random())
        return [own.randrange(128000) for _ in range(length)]

    async def tokens(self, prompt: list[int], params: Any, give_up_after: int | None = None) -> list[int]:
        self.number += 1
        got: list[int] = []
        async for output in self.engine.generate(prompt, params, f"load-{self.number}"):
            got = output.outputs[0].token_ids
            if give_up_after is not None and len(got) >= give_up_after:
                break
        return list(got)

    async def client(self, until_s: float) -> None:
        from core import SamplingParams

        rng = self.rng
        while time.monotonic() < until_s:
            prompt, most = self.prompt(), rng.choice([rng.randint(1, 64), rng.randint(64, 2000)])
            cut = rng.randint(0, most) if rng.random() < 0.15 else None
            params = SamplingParams(
                temperature=rng.choice([0.0, 0.8]), top_p=0.95, max_tokens=most, ignore_eos=True, detokenize=False
            )
            try:
                got = await self.tokens(prompt, params, cut)
            except Exception as error:
                self.errors.append(f"{type(error).__name__}: {error}")
                continue
            self.counts["cancelled" if cut is not None else "finished"] += 1
            self.counts["input_tokens"] += len(prompt)
            self.counts["output_tokens"] += len(got)
            if cut is None and len(got) != most:
                self.errors.append(f"{len(got)} tokens came, {most} were asked for")

    async def repeat_sample(self, prompt: list[int], params: Any, wanted: list[int], until_s: float) -> None:
        while time.monotonic() < until_s:
            got = await self.tokens(prompt, params)
            self.counts["samples_under_load"] += 1
            if got != wanted:
                at = next((i for i, (a, b) in enumerate(zip(got, wanted, strict=False)) if a != b), len(got))
                self.errors.append(f"a sample with a prompt of {len(prompt)} differs from token {at} on")


async def run(args: argparse.Namespace) -> dict[str, Any]:
    from core import AsyncEngine, EngineConfig, SamplingParams

    options = {"load_format": "dummy", "skip_tokenizer_init": True, "max_model_len": 20480, "max_num_seqs": 256}
    options |= {"deterministic": True, "gpu_memory_utilization": 0.9, **json.loads(args.options)}
    folder = workloads.write_model_dir(Path(tempfile.mkdtemp()), args.shape)
    engine = AsyncEngine(EngineConfig.from_options(model=folder, **options))
    await engine.start()
    load = Load(engine, 0)
    own = random.Random(7)
    samples = []
    for i in range(SAMPLES):
        prompt = [own.randrange(128000) for _ in range(own.choice([5, 100, 700, 5000]))]
        params = SamplingParams(temperature=0, max_tokens=own.choice([20, 150, 300]), ignore_eos=True, detokenize=False)
        samples.append((prompt, params, await load.tokens(prompt, params)))
        if i % 2:  # half of them find their prompt in the cache later, if the load leaves it there
            await engine.call("reset_prefix_cache")
    print(f"{SAMPLES} samples made on the idle engine", file=sys.stderr, flush=True)
    begin = time.monotonic()
    until = begin + args.seconds
    clients = [asyncio.create_task(load.client(until)) for _ in range(args.clients)]
    clients += [asyncio.create_task(load.repeat_sample(*sample, until)) for sample in samples]
    most_running = 0
    least_free = engine.ready.num_blocks
    while time.monotonic() < until:
        await asyncio.sleep(1)
        stats = await engine.stats()
        most_running, least_free = max(most_running, stats.num_running), min(least_free, stats.num_free_blocks)
    # everyone leaves at once: what they had must be free again
    for task in clients:
        task.cancel()
    for ended in await asyncio.gather(*clients, return_exceptions=True):
        if isinstance(ended, Exception):
            load.errors.append(f"{type(ended).__name__}: {ended}")
    await asyncio.sleep(1)
    stats = await engine.stats()
    if stats.num_free_blocks != stats.num_blocks:
        load.errors.append(f"{stats.num_blocks - stats.num_free_blocks} blocks are held with nothing running")
    await engine.shutdown()
    return {
        "workload": "random_load",
        "engine": "backplane",
        "shape": args.shape,
        "seconds": round(time.monotonic() - begin, 1),
        "clients": args.clients,
        "options": {k: v for k, v in options.items() if k != "skip_tokenizer_init"},
        **load.counts,
        "num_blocks": stats.num_blocks,
        "least_free_blocks": least_free,
        "most_running": most_running,
        "num_preemptions": stats.num_preemptions,
        "errors": load.errors[:20],
        "num_errors": len(load.errors),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--clients", type=int, default=400)
    parser.add_argument("--shape", choices=list(workloads.SHAPES), default="llama-3.1-8b")
    parser.add_argument("--options", default="{}", help="more engine options, as JSON")
    args = parser.parse_args()
    record = asyncio.run(run(args))
    workloads.emit(record)
    sys.exit(1 if record["num_errors"] else 0)


if __name__ == "__main__":
    main()
