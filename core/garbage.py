"""The garbage collector of a process that serves for long."""

from __future__ import annotations

import gc

THRESHOLD = 10_000
"""Objects made and not freed before the young ones are looked through; Python's own is 700 (2,000 since 3.13)."""


def spare_what_lives() -> None:
    """Keep what a process has loaded until now out of every later collection. For processes of our own, once all is loaded.

    What is imported stays: 53,000 objects in a server, 219,000 with what an engine adds. Each full collection walks through all of
    them, in 31 and 96 ms, and no stream goes on meanwhile: a quarter of what a server did at 64 streams.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(THRESHOLD, *gc.get_threshold()[1:])
