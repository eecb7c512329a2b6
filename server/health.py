"""Is the engine alive, and does it get on? /health, /live, /ready."""

from __future__ import annotations

import time

from core.messages import AddRequest, EngineStats, Finished
from core.outputs import RequestOutput


class Progress:
    """Watches steps as an engine observer. An engine with work whose step counter stands still is stuck."""

    def __init__(self, stall_s: float) -> None:
        self._stall_s = stall_s
        self._num_steps = -1
        self._num_requests = 0
        self._last_s = time.monotonic()

    def request_started(self, request: AddRequest) -> None:
        if not self._num_requests:  # time spent idle is no stall
            self._last_s = time.monotonic()
        self._num_requests += 1

    def request_finished(self, output: RequestOutput, finished: list[Finished]) -> None:
        self._num_requests -= 1
        self._last_s = time.monotonic()

    def tokens(self, n: int, gap_s: float) -> None:
        self._last_s = time.monotonic()

    def stats(self, stats: EngineStats) -> None:
        if stats.num_steps != self._num_steps:
            self._num_steps = stats.num_steps
            self._last_s = time.monotonic()

    def stalled_s(self) -> float | None:
        """Seconds without progress, once they are too many. What the engine has done with waits for its client alone."""
        idle_s = time.monotonic() - self._last_s
        return idle_s if self._num_requests and idle_s > self._stall_s else None
