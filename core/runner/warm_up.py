"""What a GPU's kernels cost once, paid before the first request: compiling them, side by side in threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

MAX_WORKERS = 12


def run_side_by_side(jobs: Sequence[Callable[[], object]], device: torch.device) -> None:
    """Run every job once, each on a stream of its own; what they compute may be nonsense. Raises what one raises.

    Compiling leaves the interpreter alone for most of its time, so threads are enough.
    """

    def run(job: Callable[[], object]) -> None:
        torch.cuda.set_device(device)
        with torch.inference_mode(), torch.cuda.stream(torch.cuda.Stream(device)):
            job()

    torch.cuda.synchronize(device)
    with ThreadPoolExecutor(min(MAX_WORKERS, os.cpu_count() or 1)) as pool:
        list(pool.map(run, jobs))
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()  # each stream keeps memory of its own
