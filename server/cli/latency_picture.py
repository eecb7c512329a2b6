"""Latencies as an SVG picture: for each kind its distribution, with median and 99th percentile marked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, PANEL, LEFT, RIGHT, TOP, BOTTOM = 720, 190, 70, 130, 34, 36
TITLES = {
    "ttft_ms": "time to first token",
    "tpot_ms": "time per output token",
    "itl_ms": "gap between pieces of a stream",
    "e2e_ms": "whole request",
}


def latency_picture(latencies: Mapping[str, Sequence[float]], caption: str) -> str:
    """SVG text: one panel a kind, the share of samples (0 to 100 %) that took at most so many milliseconds."""
    panels = [_panel(name, sorted(values), 30 + i * PANEL) for i, (name, values) in enumerate(latencies.items())]
    height = 30 + PANEL * len(panels)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12" fill="#222">\n'
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>\n'
        f'<text x="{LEFT}" y="20">{escape(caption)}</text>\n' + "\n".join(panels) + "\n</svg>\n"
    )


def _panel(name: str, ordered: list[float], top: int) -> str:
    title = f'<text x="{LEFT}" y="{top + 18}" font-weight="bold">{TITLES.get(name, name)}, ms</text>'
    if not ordered:
        return title + f'<text x="{LEFT}" y="{top + 60}">nothing was measured</text>'
    right, bottom = WIDTH - RIGHT, top + PANEL - BOTTOM
    high = _round_up(ordered[-1])
    parts = [title]

    def x(ms: float) -> float:
        return LEFT + (right - LEFT) * ms / high

    def y(share: float) -> float:
        return bottom - (bottom - top - TOP) * share

    for share in (0.0, 0.5, 1.0):
        parts.append(f'<path d="M{LEFT} {y(share):.1f}H{right}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(share) + 4:.1f}" text-anchor="end">{share:.0%}</text>')
    for i in range(5):
        ms = high * i / 4
        parts.append(f'<text x="{x(ms):.1f}" y="{bottom + 16}" text-anchor="middle">{ms:g}</text>')
    points = " ".join(f"{x(v):.1f},{y((i + 1) / len(ordered)):.1f}" for i, v in _thinned(ordered))
    parts.append(f'<polyline points="{points}" fill="none" stroke="#3366cc" stroke-width="2"/>')
    for label, share, colour in (("median", 0.5, "#2a8a4a"), ("p99", 0.99, "#c0392b")):
        value = ordered[math.ceil(len(ordered) * share) - 1]
        parts.append(f'<path d="M{x(value):.1f} {y(1):.1f}V{bottom}" stroke="{colour}" stroke-dasharray="4 3"/>')
        parts.append(
            f'<text x="{right + 10}" y="{top + TOP + (10 if label == "median" else 28)}" fill="{colour}">'
            f"{label} {value:.1f}</text>"
        )
    parts.append(f'<text x="{right + 10}" y="{top + TOP + 46}">{len(ordered)} samples</text>')
    return "\n".join(parts)


def _thinned(ordered: list[float]) -> list[tuple[int, float]]:
    """At most some 400 points, the last among them."""
    step = max(1, len(ordered) // 400)
    chosen = list(enumerate(ordered))[::step]
    return chosen if chosen[-1][0] == len(ordered) - 1 else [*chosen, (len(ordered) - 1, ordered[-1])]


def _round_up(value: float) -> float:
    """The next number with a short label: 1, 2, 4 or 8 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return float(next(f * power for f in (1, 2, 4, 8, 10) if f * power >= value))
