"""Matrix rates that last: the library's products one after another, with the clock and the power that the driver reports.

python benchmarks/gpu/power.py

A product timed alone runs at the card's highest clock; a second of them runs at what its power limit allows. Zeros, which
switch few transistors, show the difference.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import threading
import time
from collections.abc import Callable
from typing import IO

import torch

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


def main() -> None:
    torch.manual_seed(0)
    watch = Watch()
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
    watch.close()


if __name__ == "__main__":
    main()
