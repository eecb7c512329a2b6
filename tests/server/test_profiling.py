"""Traces of the engine's steps: by the administration routes of a real server, and by an option of the engine."""

from __future__ import annotations

import gzip
import json
import threading
from pathlib import Path

import httpx
import pytest

from core import Engine, SamplingParams
from core.errors import ConfigError

WORK = {"prompt": "the", "max_tokens": 8, "ignore_eos": True}


def has_matrices(path: str | Path) -> bool:
    names = {e.get("name", "") for e in json.loads(gzip.decompress(Path(path).read_bytes()))["traceEvents"]}
    return any("linear" in n or "mm" in n for n in names)


def test_the_routes_write_a_trace_while_requests_run(start_server, tmp_path):
    server = start_server(engine={"profile_dir": str(tmp_path / "traces")})
    early = httpx.post(f"{server.url}/stop_profile")
    assert early.status_code == 400 and "start one first" in early.json()["error"]["message"]
    assert httpx.post(f"{server.url}/start_profile").status_code == 200
    again = httpx.post(f"{server.url}/start_profile")
    assert again.status_code == 400 and "stop it first" in again.json()["error"]["message"]
    answers: list[int] = []
    ask = lambda: answers.append(httpx.post(f"{server.url}/v1/completions", json=WORK, timeout=60).status_code)  # noqa: E731
    threads = [threading.Thread(target=ask) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    done = httpx.post(f"{server.url}/stop_profile", timeout=60)
    assert done.status_code == 200 and answers == [200] * 3
    assert has_matrices(done.json()["trace"])
    ask()
    assert answers[-1] == 200


def test_without_a_folder_the_route_says_how_to_get_one(server):
    answer = httpx.post(f"{server.url}/start_profile")
    assert answer.status_code == 400 and "--profile-dir" in answer.json()["error"]["message"]


def test_the_first_steps_by_an_option(tmp_path):
    with Engine("demo", profile_dir=str(tmp_path), profile_steps=3, max_model_len=256) as engine:
        engine.generate("Once", SamplingParams(max_tokens=8, ignore_eos=True))
        (trace,) = tmp_path.iterdir()
        assert has_matrices(trace)
    assert len(list(tmp_path.iterdir())) == 1
    with Engine("demo", profile_dir=str(tmp_path / "short"), profile_steps=100, max_model_len=256) as engine:
        engine.generate("Once", SamplingParams(max_tokens=2))
    assert len(list((tmp_path / "short").iterdir())) == 1  # written at the end, with fewer steps


def test_steps_without_a_folder_are_refused():
    with pytest.raises(ConfigError, match="needs profile_dir"):
        Engine("demo", profile_steps=3)


def test_deterministic_mode_says_what_it_needs():
    with pytest.raises(ConfigError, match="NVIDIA GPU"):
        Engine("demo", deterministic=True, device="cpu")


def test_a_cache_type_that_the_backend_does_not_store_is_refused():
    with pytest.raises(ConfigError, match="stores no keys and values as 'fp8'"):
        Engine("demo", kv_cache_dtype="fp8", device="cpu")
