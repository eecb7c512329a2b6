"""What a step costs on the host with the model replaced by nothing, and what block operations cost.

python benchmarks/host_step.py
"""

from __future__ import annotations

import statistics
import time

import numpy as np
from machine import write

from core.batch import StepResult
from core.config import CacheConfig, SchedulerConfig
from core.kv_cache.block_pool import BlockPool
from core.request import Request
from core.sampling_params import SamplingParams
from core.scheduler.scheduler import Scheduler


def steady_step(num_running: int) -> dict[str, float]:
    """Microseconds of schedule + commit with all requests decoding (16 in one step cross a block's end, on average)."""
    rng = np.random.default_rng(0)
    scheduler = Scheduler(
        SchedulerConfig(max_num_seqs=num_running),
        CacheConfig(),
        num_blocks=num_running * 80,
        max_model_len=1024,
        max_num_batched_tokens=num_running * 64,
    )
    for i in range(num_running):
        prompt = rng.integers(10, 30000, int(rng.integers(16, 48))).astype(np.int32)
        scheduler.add(
            Request(
                handle=i,
                request_id=str(i),
                prompt_token_ids=prompt,
                params=SamplingParams(max_tokens=900),
                arrival_time_s=0.0,
                max_total_tokens=len(prompt) + 900,
                stop_token_ids=frozenset({2}),
                eos_token_ids=frozenset({2}),
                stream=True,
            )
        )
    times = []
    for step in range(600):
        begun = time.perf_counter()
        plan = scheduler.schedule()
        planned = time.perf_counter()
        assert plan is not None
        tokens = rng.integers(10, 30000, plan.num_samples).astype(np.int32)
        answered = time.perf_counter()
        scheduler.commit(plan, StepResult(tokens))
        if step >= 50:
            times.append((planned - begun + time.perf_counter() - answered) * 1e6)
    assert scheduler.num_running == num_running
    ordered = sorted(times)
    mean = round(statistics.fmean(ordered), 1)
    return {
        "median_us": round(statistics.median(ordered), 1),
        "mean_us": mean,
        "p99_us": round(ordered[int(len(ordered) * 0.99)], 1),
    }


def block_operations(num_blocks: int = 100_000) -> dict[str, float]:
    """Microseconds of each operation, mean over all blocks."""
    pool = BlockPool(num_blocks)
    keys = [i.to_bytes(16, "little") for i in range(num_blocks)]

    def timed(work) -> float:  # type: ignore[no-untyped-def]
        begun = time.perf_counter()
        work()
        return round((time.perf_counter() - begun) / num_blocks * 1e6, 3)

    blocks: list[int] = []
    result = {"allocate": timed(lambda: [blocks.extend(pool.allocate(1)) for _ in range(num_blocks)])}
    result["publish"] = timed(lambda: [pool.publish(b, k) for b, k in zip(blocks, keys, strict=True)])
    result["acquire"] = timed(lambda: [pool.acquire(b) for b in blocks])
    result["release_shared"] = timed(lambda: [pool.release(b) for b in blocks])
    result["release_last"] = timed(lambda: [pool.release(b) for b in blocks])
    result["find"] = timed(lambda: [pool.find(k) for k in keys])
    result["allocate_evicting"] = timed(lambda: [None for _ in range(num_blocks) if not pool.allocate(1)])
    return result


if __name__ == "__main__":
    steady_step(64)  # a processor that has slept begins slowly
    write(
        "host_step",
        {
            "step_us": {str(n): steady_step(n) for n in (64, 256, 1024)},
            "block_operation_us_at_100000": block_operations(),
        },
    )
