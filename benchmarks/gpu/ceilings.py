"""What the device does at best: a large copy, and a large matrix product in bf16 by the library. Emits one line."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from itertools import pairwise

import torch
import workloads


def median_ms(run: Callable[[], object], repeats: int = 30) -> float:
    """By device events, after a warm-up."""
    for _ in range(5):
        run()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    events[0].record()
    for event in events[1:]:
        run()
        event.record()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in pairwise(events))


def copy_gb_s(size: int = 4 << 30) -> float:
    """Bytes read and written."""
    source = torch.randint(256, (size,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * size / median_ms(lambda: target.copy_(source)) / 1e6


def matmul_tflop_s(n: int = 8192) -> float:
    a, b = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * n**3 / median_ms(lambda: torch.mm(a, b, out=out)) / 1e9


def main() -> None:
    workloads.emit(
        {
            "workload": "ceilings",
            "gpu": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "copy_gb_s": round(copy_gb_s(), 1),
            "matmul_tflop_s": round(matmul_tflop_s(), 1),
        }
    )


if __name__ == "__main__":
    main()
