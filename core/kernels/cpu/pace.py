"""Whether several threads are worth it just now: told by the clock alone.

A team that meets at a barrier a hundred times a millisecond is as slow as its most disturbed member. Where other programs want
the cores (the server process, on a small machine), one thread may take 2 ms for what two need 16 for, and 1 on an idle one.
"""

from __future__ import annotations

from collections import deque

PROBE = 128
"""Runs between two that one thread does alone, to know how long that takes."""
FIRST_PROBE = 4
WORSE = 1.15
"""The team must be so many times slower than one thread to be left."""
FEWEST_ALONE, MOST_ALONE = 16, 512
"""Runs for which it is left. Twice as many each time it is found no better."""


class Pace:
    """Of one program. Ask `alone` before each run, and tell `took` after it."""

    def __init__(self) -> None:
        self.alone = False
        """The next run is one thread's."""
        self._left = 0  # runs alone that are still to come
        self._hold = FEWEST_ALONE
        self._until_probe = FIRST_PROBE
        # of the last three the middle one: a single run may have been interrupted
        self._team_s: deque[float] = deque(maxlen=3)
        self._alone_s: deque[float] = deque(maxlen=3)

    def took(self, seconds: float) -> None:
        """The run that was asked about last is over."""
        if self.alone:
            self._alone_s.append(seconds)
            self._left -= 1
            self.alone = self._left > 0
            return
        self._team_s.append(seconds)
        self._until_probe -= 1
        if len(self._team_s) == 3 and self._alone_s:
            if _middle(self._team_s) > WORSE * _middle(self._alone_s):
                self._leave(self._hold)
                self._hold = min(2 * self._hold, MOST_ALONE)
                return
            self._hold = FEWEST_ALONE
        if self._until_probe <= 0:
            self._leave(1)

    def _leave(self, runs: int) -> None:
        self.alone, self._left, self._until_probe = True, runs, PROBE
        if runs > 1:
            self._team_s.clear()


def _middle(times: deque[float]) -> float:
    return sorted(times)[len(times) // 2] if len(times) != 2 else min(times)
