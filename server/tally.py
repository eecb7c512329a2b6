"""Counts of several server processes in one piece of shared memory: each adds to its own row, anyone sums them all.

A row outlives its process, so that a total never falls: who takes the place of a dead one counts on in its row. See
docs/decisions/0007-several-server-processes.md.
"""

from __future__ import annotations

import mmap
from array import array
from collections.abc import MutableSequence
from pathlib import Path

import numpy as np

CELLS = 1024
"""Cells of a row, each a float64: exact for counts up to 2**53, and written in one piece."""
ENGINE_RESTARTS, SERVER_RESTARTS = 0, 1
_FIRST_FREE = 2


class Tally:
    """Without a path: the counts of this process alone."""

    def __init__(self, path: str | None = None, row: int = 0) -> None:
        self.mine: MutableSequence[float]
        """The row that this process adds to."""
        self._next = _FIRST_FREE
        if path is None:
            self.mine = array("d", bytes(8 * CELLS))
            self._rows = np.frombuffer(self.mine, np.float64).reshape(1, CELLS)
            return
        with open(path, "r+b") as file:
            memory = mmap.mmap(file.fileno(), 0)
        # writable, so that `mine` writes to the file; the rows of others are only read
        self._rows = np.frombuffer(memory, np.float64).reshape(-1, CELLS)
        self.mine = memoryview(memory).cast("d")[row * CELLS : (row + 1) * CELLS]  # type: ignore[assignment]

    @staticmethod
    def create(path: str, num_rows: int) -> None:
        """An empty one at `path`."""
        Path(path).write_bytes(bytes(8 * CELLS * num_rows))

    def take(self, count: int) -> int:
        """The first of `count` cells for one use. Every process takes the same in the same order."""
        first = self._next
        self._next += count
        assert self._next <= CELLS, "raise CELLS"
        return first

    def totals(self, first: int, count: int = 1) -> list[float]:
        """Sums over all processes."""
        return self._rows[:, first : first + count].sum(0).tolist()  # type: ignore[no-any-return]
