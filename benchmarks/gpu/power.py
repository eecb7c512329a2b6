"""Matrix rates that last: the library's products one after another, with the clock and the power that the driver reports.

python benchmarks/gpu/power.py [--decodes]

A product timed alone runs at the card's highest clock; a second of them runs at what its power limit allows. Zeros, which
switch few transistors, show the difference. With --decodes: mixed_256 by half second, and the four matrices of a layer as the
engine chooses their kernels, beside the library, for rows of decodes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

MATRICES = {"qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (28672, 4096), "down": (4096, 14336)}
"""Outputs and inputs, of Llama-3.1-8B's shape."""
QUERY = "clocks.sm,power.draw.instant,clocks_event_reasons.active"
SECONDS = 1.5


class Watch:
    """What the driver says, 20 times a second."""

    def __init__(self) -> None:
        command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader,nounits", "-lms", "50"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._samples: list[tuple[float, list[str]]] = []
        assert self._process.stdout is not None
        threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True).start()

    def _read(self, lines: IO[str]) -> None:
        for line in lines:
            self._samples.append((time.perf_counter(), line.strip().split(", ")))

    def between(self, begin: float, end: float) -> tuple[float, float, list[str]]:
        """Median clock in MHz and power in W, and the reasons for the clock."""
        found = [values for at, values in self._samples if begin <= at <= end]
        clock, power = (statistics.median(float(v[i]) for v in found) for i in (0, 1))
        return clock, power, sorted({v[2] for v in found})

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def lasting_ms(run: Callable[[], object]) -> tuple[float, float, float]:
    """-> milliseconds of one; from when to when they lasted"""
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    run()
    first.record()
    run()
    last.record()
    torch.cuda.synchronize()
    count = max(4, int(SECONDS * 1e3 / first.elapsed_time(last)))
    begin = time.perf_counter()
    first.record()
    for _ in range(count):
        run()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last) / count, begin, time.perf_counter()


def long_products(watch: Watch) -> None:
    """The library's, of normal numbers and of zeros."""
    for values in ("normal", "zeros"):
        for rows in (16384, 8192):
            for name, (outputs, inputs) in MATRICES.items():
                x = torch.randn(rows, inputs, device="cuda", dtype=torch.bfloat16)
                weight = torch.randn(outputs, inputs, device="cuda", dtype=torch.bfloat16) * 0.02
                if values == "zeros":
                    x.zero_()
                    weight.zero_()
                out = torch.empty(rows, outputs, device="cuda", dtype=torch.bfloat16)
                ms, begin, end = lasting_ms(lambda x=x, w=weight, out=out: torch.mm(x, w.t(), out=out))  # type: ignore[misc]
                clock, power, reasons = watch.between(begin + SECONDS / 3, end)
                line = {"values": values, "rows": rows, "matrix": name}
                line |= {"tflop_s": round(2 * rows * outputs * inputs / ms / 1e9)}
                print(json.dumps({**line, "sm_mhz": clock, "power_w": power, "reasons": reasons}), flush=True)


def workload_by_half_second(watch: Watch, name: str) -> None:
    """Clock and power while the engine serves it."""
    import workloads
    from run_backplane import Server

    server = Server("llama-3.1-8b", False, {"max_num_batched_tokens": 16384})
    server.serve(workloads.build("warmup"))
    begin = time.perf_counter()
    server.serve(workloads.build(name))
    end = time.perf_counter()
    print(json.dumps({"workload": name, "seconds": round(end - begin, 3)}))
    for half in range(int(2 * (end - begin))):
        clock, power, reasons = watch.between(begin + half / 2, begin + half / 2 + 0.5)
        line = {"workload": name, "at_s": half / 2, "sm_mhz": clock, "power_w": power, "reasons": reasons}
        print(json.dumps(line), flush=True)
    server.close()


def matrices_of_decodes(watch: Watch) -> None:
    """A layer's four, of 12 layers in turn, replayed from a graph."""
    from core.kernels import dispatch

    layers = [
        {name: torch.randn(o, i, device="cuda", dtype=torch.bfloat16) * 0.02 for name, (o, i) in MATRICES.items()}
        for _ in range(12)
    ]

    def product(name: str, x: torch.Tensor, weight: torch.Tensor, by: str) -> None:
        if by == "lib":
            y = torch.nn.functional.linear(x, weight)
            if name == "gate_up":
                dispatch.silu_and_mul(y)
        elif name == "gate_up":
            dispatch.linear_silu_and_mul(x, weight)
        else:
            dispatch.linear(x, weight)

    for rows in (1, 32, 64, 128, 192, 256):
        inputs = {i: torch.randn(rows, i, device="cuda", dtype=torch.bfloat16) for _, i in MATRICES.values()}
        for by in ("ours", "lib"):

            def step(inputs: dict[int, torch.Tensor] = inputs, by: str = by) -> None:
                for layer in layers:
                    for name, weight in layer.items():
                        product(name, inputs[weight.shape[1]], weight, by)

            step()
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step()
            ms, begin, end = lasting_ms(graph.replay)
            clock, power, reasons = watch.between(begin + SECONDS / 3, end)
            line = {"rows": rows, "by": by, "lasting_us": round(ms / len(layers) * 1e3, 1), "sm_mhz": clock}
            print(json.dumps({**line, "power_w": round(power), "reasons": reasons}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decodes", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(0)
    watch = Watch()
    if args.decodes:
        workload_by_half_second(watch, "mixed_256")
        matrices_of_decodes(watch)
    else:
        long_products(watch)
    watch.close()


if __name__ == "__main__":
    main()
