"""One line on a terminal that shows how far something is. In a pipe there is none."""

from __future__ import annotations

import sys
import time
from types import TracebackType

WIDTH = 30
EVERY_S = 0.1
SHOWN_AFTER_S = 0.5
"""What is done sooner shows nothing."""


class ProgressLine:
    """`with ProgressLine("loading weights") as line: line(done, total)`; the line is gone afterwards."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._terminal = sys.stderr is not None and sys.stderr.isatty()
        self._due_s = time.monotonic() + SHOWN_AFTER_S
        self._drawn = False

    def __call__(self, done: int, total: int) -> None:
        """Cheap when called often."""
        now = time.monotonic()
        if not self._terminal or now < self._due_s or total <= 0:
            return
        self._due_s = now + EVERY_S
        self._drawn = True
        full = WIDTH * min(done, total) // total
        sys.stderr.write(f"\r{self._what} {'█' * full}{'░' * (WIDTH - full)} {100 * done // total:3d} %\x1b[K")
        sys.stderr.flush()

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._drawn:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
