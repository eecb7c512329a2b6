"""One thread or several, by what they took."""

from __future__ import annotations

import random

from core.kernels.cpu.pace import MOST_ALONE, PROBE, Pace


def run(pace: Pace, runs: int, team_ms: float, alone_ms: float, noise: float = 0.0) -> tuple[float, int]:
    """-> what all took, and how many were one thread's."""
    rng = random.Random(1)
    total, by_one = 0.0, 0
    for _ in range(runs):
        by_one += pace.alone
        took = alone_ms if pace.alone else team_ms
        if rng.random() < noise:
            took *= 20
        pace.took(took / 1000)
        total += took
    return total, by_one


def test_a_quiet_machine():
    """The team, but for a probe now and then."""
    _, by_one = run(Pace(), 10 * PROBE, 1.0, 1.7)
    assert 9 <= by_one <= 11


def test_a_busy_machine():
    """One thread, but for a few tries: hardly slower than if that were all there is; and nobody else's when it gets quiet."""
    pace = Pace()
    total, by_one = run(pace, 5000, 16.0, 2.0)
    assert total < 1.15 * 5000 * 2 and by_one > 4900
    _, by_one = run(pace, MOST_ALONE + 2000, 1.0, 1.7)
    assert by_one < MOST_ALONE + 30


def test_single_interruptions():
    _, by_one = run(Pace(), 2000, 1.0, 1.7, noise=0.02)
    assert by_one < 200


def test_no_difference():
    """Neither is left for the other back and forth."""
    _, by_one = run(Pace(), 2000, 1.0, 0.95)
    assert by_one < 30
