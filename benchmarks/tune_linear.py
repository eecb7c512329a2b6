"""Times every sensible configuration of the few-row matrix kernels on this GPU, beside the library's.

    python benchmarks/tune_linear.py [--rows 32,64,128,256] [--shapes 8b] [--processes 14]

First all kernels are compiled side by side by child processes into Triton's cache, then timed one by one as replays of
a CUDA graph over weights too many for the L2 cache. Prints one JSON line for each shape and number of rows: the five
best configurations with their share of the floor (bytes over copy bandwidth).
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch.nn import functional

from benchmarks.gpu_kernels import BF, Report, ceilings, graph_us, rand
from core.kernels import activation, skinny_linear, wide_linear
from core.kernels.linear_configs import DotConfig, WideConfig

SHAPES = {
    "8b": [(6144, 4096, False), (4096, 4096, False), (14336, 4096, True), (4096, 14336, False), (128256, 4096, False)],
    "1b": [(3072, 2048, False), (2048, 2048, False), (8192, 2048, True), (2048, 8192, False), (128256, 2048, False)],
    "0.6b": [(4096, 1024, False), (1024, 2048, False), (3072, 1024, True), (1024, 3072, False), (151936, 1024, False)],
}
SHARED_BYTES = 220_000


def candidates(rows: int, outputs: int, inputs: int, silu: bool, most: int, seed: int) -> list[DotConfig | WideConfig]:
    found: list[DotConfig | WideConfig] = []
    if rows <= 32:
        padded = 16 if rows <= 16 else 32
        for n in (32, 64):
            for k in (128, 256):
                for stages in (3, 4, 5, 6):
                    for splits in (1,) if silu else (1, 2, 4):
                        for warps in (4, 8):
                            for swap in (False, True) if n == 64 else (False,):
                                size = (n * (1 + silu) + padded) * k * 2 * stages
                                fits = size <= SHARED_BYTES and not inputs % (k * splits) and not outputs % n
                                if fits and (splits == 1 or outputs // n * splits <= 1200):
                                    found.append(DotConfig(n, k, stages, warps, swap, splits))
    for tile in (32, 64, 128, 256):
        if tile > max(rows, 32) or rows > 2 * tile:
            continue
        for n in (64, 128, 256):
            for k in (64, 128):
                for stages in (3, 4, 5, 6, 8):
                    for splits in (1,) if silu else (1, 2, 3, 4):
                        for warps in (4, 8):
                            for swap in (True, False):
                                if swap and tile * n * (1 + silu) > 128 * 256 * (warps // 4):
                                    continue
                                if not swap and (tile < 64 or tile * n * (1 + silu) > 128 * 256 * (warps // 4)):
                                    continue
                                size = (n * (1 + silu) + tile) * k * 2 * stages
                                programs = outputs // n * splits * -(-rows // tile)
                                if size > SHARED_BYTES or inputs % (k * splits) or outputs % n or programs < 60:
                                    continue
                                if splits > 1 and programs > 600:
                                    continue
                                found.append(WideConfig(tile, n, k, stages, warps, swap, splits))
    random.Random(seed).shuffle(found)
    return found[:most]


def run(config: DotConfig | WideConfig, x: torch.Tensor, w: torch.Tensor, silu: bool) -> torch.Tensor:
    if isinstance(config, WideConfig):
        return wide_linear.wide_linear(x, w, None, silu, config=config)
    return skinny_linear.skinny_linear(x, w, None, silu, config)


def compile_some(jobs: list[tuple[int, tuple[int, int, bool], DotConfig | WideConfig]]) -> None:
    for rows, (outputs, inputs, silu), config in jobs:
        x = torch.zeros(rows, inputs, device="cuda", dtype=BF)
        w = torch.zeros(outputs * (1 + silu), inputs, device="cuda", dtype=BF)
        try:
            run(config, x, w, silu)
            torch.cuda.synchronize()
        except Exception as error:
            print(f"{config}: {error!r}"[:150], file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="32,64,128,256")
    parser.add_argument("--shapes", default="8b")
    parser.add_argument("--most", type=int, default=36, help="configurations of each shape and number of rows")
    parser.add_argument("--processes", type=int, default=14)
    parser.add_argument("--budget-s", type=float, default=1e9)
    args = parser.parse_args()
    shapes = [s for name in args.shapes.split(",") for s in SHAPES[name]]
    work = [(int(r), s) for r in args.rows.split(",") for s in shapes]
    plan = {(r, s): candidates(r, *s, args.most, i) for i, (r, s) in enumerate(work)}
    jobs = [(r, s, c) for (r, s), configs in plan.items() for c in configs]
    random.Random(0).shuffle(jobs)
    begun = time.perf_counter()
    with ProcessPoolExecutor(args.processes, mp_context=get_context("spawn")) as pool:
        list(pool.map(compile_some, [jobs[i :: 4 * args.processes] for i in range(4 * args.processes)]))
    print(f"compiled {len(jobs)} kernels in {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
    report = Report("tune_linear.jsonl")
    bandwidth, _ = ceilings(report)
    for (rows, (outputs, inputs, silu)), configs in plan.items():
        if time.perf_counter() - begun > args.budget_s:
            print("out of time", flush=True)
            break
        wide = outputs * (1 + silu)
        weights = [rand(wide, inputs) * 0.02 for _ in range(max(1, min(12, 300_000_000 // (wide * inputs * 2))))]
        x = rand(rows, inputs)
        floor = wide * inputs * 2 / bandwidth * 1e6
        expected = functional.linear(x.float(), weights[0].float())
        if silu:
            expected = functional.silu(expected[:, :outputs]) * expected[:, outputs:]

        def library() -> None:
            for w in weights:
                y = functional.linear(x, w)
                if silu:
                    activation.silu_and_mul(y)

        theirs = graph_us(library, 5) / len(weights)
        found: list[tuple[float, Any]] = []
        for config in configs:
            try:
                got = run(config, x, weights[0], silu).float()
                error = ((got - expected).norm() / expected.norm()).item()
                if not error < 0.01:
                    print(f"wrong by {error}: {rows} {outputs} {inputs} {config}", flush=True)
                    continue
                us = graph_us(lambda: [run(config, x, w, silu) for w in weights], 5) / len(weights)
            except Exception as error:
                print(f"{config}: {error!r}"[:120], file=sys.stderr)
                continue
            found.append((us, config))
        found.sort(key=lambda f: f[0])
        report.add(
            "linear",
            rows=rows,
            shape=[outputs, inputs, silu],
            library_us=theirs,
            library_share=floor / theirs,
            best=[[round(us, 1), round(floor / us, 3), repr(c)] for us, c in found[:5]],
        )


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    main()
