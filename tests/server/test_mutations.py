"""The short form of benchmarks/fuzz.py: mutated requests of a fixed seed to every POST route of a real server."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from pathlib import Path

import httpx

_path = Path(__file__).parents[2] / "benchmarks" / "fuzz.py"
_spec = importlib.util.spec_from_file_location("benchmark_fuzz", _path)
fuzz = sys.modules["benchmark_fuzz"] = importlib.util.module_from_spec(_spec)  # a dataclass looks for its module
_spec.loader.exec_module(fuzz)


def test_no_request_breaks_the_server(start_server):
    server = start_server(engine={"max_model_len": 128, "num_blocks": 512})
    findings = asyncio.run(fuzz.attack(server.url, 2000, seed=1))
    assert not findings.wrong, "\n".join(findings.wrong[:10])
    # both kinds are there: bodies that the server has to turn down, and bodies that reach the engine
    assert findings.statuses["400"] > 1000 and findings.statuses["200"] > 250, findings.statuses
    assert findings.statuses["hung up"] > 20
    server.wait_idle()
    assert server.metric("vllm:kv_cache_usage_perc") == 0
    assert httpx.post(f"{server.url}/v1/completions", json={"prompt": "the", "max_tokens": 2}).status_code == 200
    assert "Traceback" not in server.output


def test_what_is_wrong_is_found():
    """The check itself: what it has to call wrong, and what not."""
    wrong = fuzz._wrong
    assert wrong(500, "application/json", b'{"error": {"message": "x"}}')
    assert wrong(400, "application/json", b"<html>") and wrong(400, "application/json", b'{"error": {}}')
    assert wrong(400, "application/json", b'{"error": {"message": "Traceback (most recent call last)"}}')
    assert wrong(200, "text/event-stream", b'data: {"error":{"message":"x","type":"server_error"}}\n\n')
    assert wrong(200, "text/event-stream", b'data: {"choices":[]}\n\n') is None
    assert wrong(400, "application/json", b'{"error": {"message": "x"}}') is None
