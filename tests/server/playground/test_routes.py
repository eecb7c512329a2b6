"""The page's routes and the engine's state, from a real server process; what is asked of the engine, and when."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import signal

import httpx
import numpy as np

from core import AsyncEngine, EngineConfig, SamplingParams
from core.messages import EngineStats, Inspection
from server.config import ServerConfig
from server.playground.watch import CACHED, MAX_CELLS, SHARED, USED, BlockMap, Watch
from server.state import ServerState

FILES = ("icon.svg", "style.css", "app.js", "api.js", "settings.js", "chat.js", "engine.js", "blocks.js", "curves.js")


def test_the_page_comes_from_the_server_alone(server):
    page = httpx.get(server.url + "/")
    assert page.status_code == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    for name in FILES:
        found = httpx.get(f"{server.url}/playground/{name}")
        assert found.status_code == 200, name
        assert found.headers["content-security-policy"] == policy
        assert found.headers["x-content-type-options"] == "nosniff"
        again = httpx.get(f"{server.url}/playground/{name}", headers={"if-none-match": found.headers["etag"]})
        assert again.status_code == 304 and not again.content
        if name != "icon.svg":  # whose namespace is an address that nobody asks for
            assert not re.search(r"(https?:)?//[a-z0-9.]+\.[a-z]", re.sub(r"(?m)^\s*//.*|\s// .*", "", found.text)), (
                name
            )
    for missing in ("nothing.js", "routes.py", "__init__.py", "..%2fapp.py"):
        assert httpx.get(f"{server.url}/playground/{missing}").status_code == 404, missing


def test_the_page_is_open_and_the_state_is_not(keyed_server):
    running = keyed_server
    assert httpx.get(running.url + "/").status_code == 200
    assert httpx.get(running.url + "/playground/app.js").status_code == 200
    for path in ("/backplane/state", "/backplane/events"):
        assert httpx.get(running.url + path).status_code == 401
    state = httpx.get(running.url + "/backplane/state", headers={"authorization": "Bearer secret"}).json()
    assert state["engine"]["num_blocks"] == sum(state["block_counts"]) == 2048


def test_it_can_be_off(start_server):
    running = start_server(server={"playground": False})
    for path in ("/", "/playground/app.js", "/backplane/state", "/backplane/events"):
        assert httpx.get(running.url + path).status_code == 404, path
    assert httpx.get(running.url + "/health").status_code == 200


NEW = 3000
"""Tokens of a request that is there when the engine is looked at, five times a second."""


def test_events_show_a_request_from_beginning_to_end(server):
    body = {"prompt": "the engine " * 40, "max_tokens": NEW, "ignore_eos": True, "stream": True}
    seen, kinds = [], set()
    with (
        httpx.Client(timeout=30) as client,
        client.stream("GET", server.url + "/backplane/events") as events,
        client.stream("POST", server.url + "/v1/completions", json=body) as answer,
    ):
        lines = events.iter_lines()
        first = next(json.loads(line[6:]) for line in lines if line)
        assert first["engine"]["choices"]["attention_backend"].endswith("CPU)")
        assert [name for name, _ in first["engine"]["timeline"]][0] == "import"
        pieces = answer.iter_bytes()
        for line in lines:
            if not line:
                continue
            tick = json.loads(line[6:])
            assert "engine" not in tick and tick["error"] is None
            seen.append(tick)
            if "cells" in tick:
                kinds |= {c & 3 for c in base64.b64decode(tick["cells"])}
            next(pieces, None)
            if tick["stats"]["num_running"] == 0 and any(t["rows"] for t in seen):
                break
    rows = [t["rows"][0] for t in seen if t["rows"]]
    _, num_prompt, computed, tokens, most, num_blocks, _ = rows[-1]
    assert most == num_prompt + NEW and num_prompt <= computed <= tokens + 1 and num_blocks * 16 >= computed
    assert [r[3] for r in rows] == sorted(r[3] for r in rows)
    assert {USED, CACHED} <= kinds
    gaps = [t["latency"]["gap"] for t in seen if t["latency"]["gap"]]
    assert gaps and all(0 < g["p50_s"] <= g["p99_s"] < 5 for g in gaps)


def test_the_engine_is_asked_only_while_somebody_watches():
    async def run() -> None:
        engine = AsyncEngine(EngineConfig.from_options(model="demo", num_blocks=256, num_threads=1))
        await engine.start()
        try:
            watch = Watch(ServerState(engine, ServerConfig()))
            await asyncio.sleep(0.6)
            assert watch.num_looks == 0
            one, two = watch.events(), watch.events()
            for _ in range(3):
                await asyncio.gather(anext(one), anext(two))
            # two watchers, one look a tick
            assert watch.num_watchers == 2 and watch.num_looks <= 4
            await one.aclose()
            await anext(two)
            await two.aclose()
            looks = watch.num_looks
            await asyncio.sleep(0.6)
            assert watch.num_watchers == 0 and watch.num_looks == looks
            # a watcher that comes back gets the whole picture first
            again = watch.events()
            first = json.loads((await anext(again))[6:])
            assert first["engine"]["num_blocks"] == 256 and len(base64.b64decode(first["cells"])) == 256
            await again.aclose()
        finally:
            await engine.shutdown()

    asyncio.run(run())


def test_a_dead_engine_is_shown_as_dead():
    async def run() -> None:
        engine = AsyncEngine(EngineConfig.from_options(model="demo", num_blocks=256, num_threads=1))
        await engine.start()
        try:
            state = ServerState(engine, ServerConfig())
            events = Watch(state).events()
            assert json.loads((await anext(events))[6:])["error"] is None
            stream = engine.generate("Hello", SamplingParams(max_tokens=500, ignore_eos=True))
            await anext(stream)
            os.kill(engine._process.pid, signal.SIGKILL)
            error = None
            for _ in range(40):
                if error := json.loads((await anext(events))[6:])["error"]:
                    break
            assert error is not None and "ended with status" in error
            assert "backplane:engine_up{" in state.metrics.exposition().decode()
            assert 'backplane:engine_up{model_name="demo"} 0.0' in state.metrics.exposition().decode()
            assert 'request_success_total{finished_reason="error",model_name="demo"} 1.0' in (
                state.metrics.exposition().decode()
            )
            await events.aclose()
        finally:
            await engine.shutdown()

    asyncio.run(run())


def test_large_pools_are_looked_at_in_turns_and_drawn_in_groups():
    picture = BlockMap(20_000)
    assert picture.group == 5
    states = np.zeros(20_000, np.uint8)
    states[:5] = [4, 4, 4, 1, 0]  # a cell: three cached, one used
    states[7_003] = 1  # one used block of five
    states[19_995:] = 2 | 4  # the last cell: all shared
    looks = []
    for _ in range(3):
        begin, count = picture.next_look()
        looks.append((begin, count))
        blocks = states[begin : begin + count].tobytes()
        picture.take(Inspection(begin=begin, blocks=blocks, rows=[], stats=EngineStats()))
    assert looks == [(0, 8192), (8192, 8192), (16384, 3616)] and picture.next_look() == (0, 8192)
    assert picture.counts() == [20_000 - 10, 3, 2, 5]
    cells = picture.cells()
    assert len(cells) == 4000 <= MAX_CELLS
    assert (cells[0] & 3, cells[0] >> 2) == (CACHED, 51)
    assert (cells[1400] & 3, cells[1400] >> 2) == (USED, 13)
    assert (cells[3999] & 3, cells[3999] >> 2) == (SHARED, 63)
    assert sum(c != 0 for c in cells) == 3
