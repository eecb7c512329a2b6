"""What the command says of a server that starts: what "auto" became and why, where time and memory went, the address."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click

from core.messages import EngineReady

BAR = 24


def start_up_lines(ready: EngineReady) -> list[tuple[str, str]]:
    """Name and text of each line."""
    lines = list(ready.choices.items())
    if ready.timeline:
        lines.append(("start-up", ", ".join(f"{phase} {seconds:.2f} s" for phase, seconds in ready.timeline)))
    if ready.memory:
        lines.append(("memory", ", ".join(f"{use} {size / 2**20:,.1f} MiB" for use, size in ready.memory.items())))
    tokens = ready.num_blocks * ready.block_size
    cache = (
        f"{ready.num_blocks:,} blocks of {ready.block_size} tokens, {tokens / ready.max_model_len:.1f} "
        f"requests of the longest kind ({ready.max_model_len:,} tokens)"
    )
    return [*lines, ("KV cache", cache)]


def show_start_up(ready: EngineReady) -> None:
    """Plain lines in a pipe; on a terminal in columns and colours, with the phases as bars."""
    if not sys.stdout.isatty():
        for name, text in start_up_lines(ready):
            print(f"{name}: {text}", flush=True)
        return
    lines = start_up_lines(ready)
    width = max(len(name) for name, _ in lines) + 2
    for name, text in lines:
        if name == "start-up":
            for i, (phase, bar) in enumerate(_timeline(ready.timeline)):
                click.echo(click.style((name if not i else "").ljust(width), fg="cyan") + phase + bar)
            continue
        choice, bracket, why = text.partition(" (")
        click.echo(click.style(name.ljust(width), fg="cyan") + choice + click.style(bracket + why, dim=True))


def show_serving(names: Sequence[str], where: str) -> None:
    """The last line: names and address, and how long the start took."""
    age_s = process_age_s()
    after = f", ready after {age_s:.1f} s" if age_s is not None else ""
    text = f"serving {', '.join(names)} on {where} (OpenAI API: {where}/v1)"
    if sys.stdout.isatty():
        text = click.style(text, fg="green", bold=True)
    click.echo(text + after)
    sys.stdout.flush()


def _timeline(phases: list[tuple[str, float]]) -> list[tuple[str, str]]:
    """Each phase and its bar; short ones are left to the sum."""
    total = sum(seconds for _, seconds in phases) or 1.0
    shown = [(phase, seconds) for phase, seconds in phases if seconds >= 0.005]
    width = max((len(phase) for phase, _ in shown), default=0) + 1
    begun, lines = 0.0, []
    for phase, seconds in shown:
        left = round(BAR * begun / total)
        bar = " " * left + "━" * max(1, round(BAR * (begun + seconds) / total) - left)
        lines.append((phase.ljust(width), click.style(bar.ljust(BAR + 1), fg="blue") + f"{seconds:6.2f} s"))
        begun += seconds
    return lines


def process_age_s() -> float | None:
    """Seconds since this process began; None where the system does not say."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError, IndexError):
        return None
