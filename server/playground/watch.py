"""What the page shows of the engine, gathered a few times a second while somebody watches, and never else.

One task asks the engine for all watchers. It asks for a part of the block pool at a time, so that a look costs the
engine's process well under a millisecond however large the pool is.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections import deque
from collections.abc import AsyncGenerator
from importlib import metadata
from typing import Any

import numpy as np

from core.messages import EngineStats, Inspection
from server.errors import encode
from server.metrics import Histogram
from server.state import ServerState

INTERVAL_S = 0.25
BLOCKS_A_LOOK = 8192
"""Blocks asked for at once: 0.6 ms of the engine's process. A larger pool is gone through in turns."""
MAX_CELLS = 4096
"""Cells of the map; a larger pool has several blocks in a cell."""
MAX_ROWS = 24
"""Running sequences that are shown one by one."""
LATENCY_WINDOW_S = 5.0

FREE, CACHED, USED, SHARED = range(4)


def kinds(states: np.ndarray) -> np.ndarray:
    """States as BlockPool has them -> FREE, CACHED (nobody's, findable), USED (by one) or SHARED (by more); uint8."""
    holders = states & 3
    return np.where(holders == 0, np.where(states & 4, CACHED, FREE), holders + 1).astype(np.uint8)


class BlockMap:
    """The last known kind of every block, and its picture in at most MAX_CELLS cells."""

    def __init__(self, num_blocks: int) -> None:
        self.blocks = np.full(num_blocks, FREE, np.uint8)
        self.group = max(1, -(-num_blocks // MAX_CELLS))
        self._next = 0

    def next_look(self) -> tuple[int, int]:
        """(begin, count) of the blocks to ask for now."""
        begin = self._next
        count = min(BLOCKS_A_LOOK, len(self.blocks) - begin)
        self._next = 0 if begin + count >= len(self.blocks) else begin + count
        return begin, count

    def take(self, look: Inspection) -> None:
        states = np.frombuffer(look.blocks, np.uint8)
        self.blocks[look.begin : look.begin + len(states)] = kinds(states)

    def counts(self) -> list[int]:
        """Blocks that are free, cached, used, shared."""
        return np.bincount(self.blocks, minlength=4).tolist()

    def cells(self) -> bytes:
        """A byte a cell: the commonest kind that is not free in its low two bits, above it how many of its blocks are
        not free, from 0 to 63."""
        padding = -len(self.blocks) % self.group
        grouped = np.pad(self.blocks, (0, padding)).reshape(-1, self.group)
        counts = np.stack([(grouped == kind).sum(1) for kind in (CACHED, USED, SHARED)])
        busy = counts.sum(0)
        kind = np.where(busy > 0, counts.argmax(0) + 1, FREE)
        level = -(-busy * 63 // self.group)  # rounded up: one block of many still shows
        return (kind | level << 2).astype(np.uint8).tobytes()


class Latencies:
    """Quantiles of what the histograms gathered within the last seconds."""

    def __init__(self, **histograms: Histogram) -> None:
        self._histograms = histograms
        self._past: deque[tuple[float, dict[str, tuple[int, ...]]]] = deque()

    def now(self) -> dict[str, dict[str, float] | None]:
        now_s = time.monotonic()
        counts = {name: h.counts() for name, h in self._histograms.items()}
        self._past.append((now_s, counts))
        while len(self._past) > 1 and now_s - self._past[1][0] >= LATENCY_WINDOW_S:
            self._past.popleft()
        before = self._past[0][1]
        found: dict[str, dict[str, float] | None] = {}
        for name, histogram in self._histograms.items():
            new = [a - b for a, b in zip(counts[name], before[name], strict=True)]
            p50, p99 = histogram.quantile(new, 0.5), histogram.quantile(new, 0.99)
            found[name] = None if p50 is None or p99 is None else {"p50_s": p50, "p99_s": p99}
        return found


class Watch:
    """The engine as watchers see it. Lives as long as the app; asks nothing while nobody watches."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self.num_watchers = 0
        self.num_looks = 0
        """Questions put to the engine so far."""
        self._ready = state.engine.ready
        self._engine_number = 0
        """Counts engines: one that takes the place of another may have other blocks."""
        self._map = BlockMap(self._ready.num_blocks)
        self._latencies: Latencies
        self._task: asyncio.Task[None] | None = None
        self._told = asyncio.Event()
        self._tick: dict[str, Any] = {}
        self._cells = b""
        self._cells_number = 0

    def engine(self) -> dict[str, Any]:
        """What does not change while the engine runs."""
        state, ready = self._state, self._ready
        try:
            version = metadata.version("backplane")
        except metadata.PackageNotFoundError:
            version = ""
        return {
            "version": version,
            "models": list(state.served_names),
            "max_model_len": ready.max_model_len,
            "num_blocks": ready.num_blocks,
            "block_size": ready.block_size,
            "blocks_a_cell": self._map.group,
            "vocab_size": ready.vocab_size,
            "choices": ready.choices,
            "timeline": ready.timeline,
            "memory": ready.memory,
            "plugins": ready.plugins,
            "sampling_defaults": state.defaults,
        }

    async def look(self) -> None:
        """Ask the engine once. An engine that is busy in a long step, or dead, is said to be so."""
        engine, error = self._state.engine, None
        stats, rows = engine.last_stats or EngineStats(), []
        self.num_looks += 1
        if engine.ready is not self._ready:
            self._ready, self._engine_number = engine.ready, self._engine_number + 1
            self._map = BlockMap(self._ready.num_blocks)
        begin, count = self._map.next_look()
        try:
            inspection = await asyncio.wait_for(engine.inspect(begin, count, MAX_ROWS), 2.0)
        except TimeoutError:
            error = "busy"
        except Exception as failure:
            error = f"dead: {failure}" if engine.errored else str(failure)
        else:
            self._map.take(inspection)
            stats, rows = inspection.stats, inspection.rows
        cells = self._map.cells()
        if cells != self._cells:
            self._cells, self._cells_number = cells, self._cells_number + 1
        self._tick = {
            "time_s": round(time.monotonic(), 4),
            "error": error,
            "draining": self._state.draining,
            "in_flight": self._state.in_flight,
            "stats": stats,
            "latency": self._latencies.now(),
            "rows": rows,
            "block_counts": self._map.counts(),
        }

    async def snapshot(self) -> dict[str, Any]:
        """Everything, once."""
        if self._task is None:
            self._begin()
            await self.look()
        return {"engine": self.engine(), **self._tick, "cells": base64.b64encode(self._cells).decode()}

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Server-sent events: a tick every INTERVAL_S, with `engine` and `cells` at first and when they changed."""
        self.num_watchers += 1
        try:
            if self._task is None:
                self._begin()
                self._task = asyncio.create_task(self._run())
            shown, known, first = -1, -1, True
            while first or not self._state.draining:
                if not self._tick or not first:
                    await self._told.wait()
                    if self._task is not None and self._task.done():
                        self._task.result()
                if not self._tick:
                    continue
                event: dict[str, Any] = dict(self._tick)
                if known != self._engine_number:
                    event["engine"] = self.engine()
                if shown != self._cells_number:
                    event["cells"] = base64.b64encode(self._cells).decode()
                shown, known, first = self._cells_number, self._engine_number, False
                yield b"data: " + encode(event) + b"\n\n"
        finally:
            self.num_watchers -= 1
            if not self.num_watchers and self._task is not None:
                self._task.cancel()
                self._task = None

    def _begin(self) -> None:
        """Someone looks after a while in which nobody did: what was known is old."""
        metrics = self._state.metrics
        self._latencies = Latencies(ttft=metrics.ttft, gap=metrics.itl)
        self._tick = {}

    async def _run(self) -> None:
        try:
            while True:
                begun_s = time.monotonic()
                await self.look()
                # whoever waits has a reference to the old event; the next tick gets a new one
                self._told.set()
                self._told = asyncio.Event()
                await asyncio.sleep(max(0.05, INTERVAL_S - (time.monotonic() - begun_s)))
        finally:
            self._told.set()
            self._told = asyncio.Event()
