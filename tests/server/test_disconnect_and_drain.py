"""Clients that vanish, servers that stop, engines that die."""

from __future__ import annotations

import signal
import socket
import threading
import time

import httpx

LONG = {"prompt": "the", "max_tokens": 4000, "ignore_eos": True}


def _send_and_vanish(server, body: str) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as s:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        s.sendall((head + body).encode())
        deadline = time.monotonic() + 10
        while server.metric("vllm:num_requests_running") == 0 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert server.metric("vllm:num_requests_running") > 0


def test_client_gone_aborts(server):
    for stream in ("true", "false"):
        _send_and_vanish(server, f'{{"prompt": "the", "max_tokens": 4000, "ignore_eos": true, "stream": {stream}}}')
        began = time.monotonic()
        server.wait_idle(3)
        assert time.monotonic() - began < 3


def test_metrics_have_both_prefixes(server):
    httpx.post(f"{server.url}/v1/completions", json={"prompt": "the engine", "max_tokens": 4, "ignore_eos": True})
    text = httpx.get(f"{server.url}/metrics").text
    names = """num_requests_running num_requests_waiting num_requests_swapped kv_cache_usage_perc gpu_cache_usage_perc
        cpu_cache_usage_perc prefix_cache_queries_total prefix_cache_hits_total prompt_tokens_total generation_tokens_total
        num_preemptions_total request_success_total avg_prompt_throughput_toks_per_s avg_generation_throughput_toks_per_s
        time_to_first_token_seconds_bucket time_per_output_token_seconds_bucket inter_token_latency_seconds_bucket
        e2e_request_latency_seconds_bucket request_queue_time_seconds_bucket"""
    for prefix in ("backplane", "vllm"):
        for name in names.split():
            assert f"{prefix}:{name}{{" in text, name
    assert 'model_name="tiny"' in text
    assert server.metric("backplane:generation_tokens_total") >= 4


def test_sigterm_drains(start_server):
    server = start_server()
    answers = []

    def ask():
        answers.append(httpx.post(f"{server.url}/v1/completions", json={**LONG, "max_tokens": 3500}, timeout=60))

    thread = threading.Thread(target=ask)
    thread.start()
    while server.metric("vllm:num_requests_running") == 0:
        time.sleep(0.01)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    refused = httpx.post(f"{server.url}/v1/completions", json=LONG)
    assert refused.status_code == 503 and httpx.get(f"{server.url}/ready").status_code == 503
    thread.join(60)
    assert answers[0].status_code == 200 and answers[0].json()["usage"]["completion_tokens"] == 3500
    assert server.process.wait(10) == 0


def test_second_sigterm_stops(start_server):
    server = start_server()
    with httpx.stream("POST", f"{server.url}/v1/completions", json={**LONG, "stream": True}, timeout=60) as answer:
        next(answer.iter_lines())
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        server.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        server.process.wait(15)
        assert time.monotonic() - began < 10


def test_keys(keyed_server):
    server = keyed_server
    for path in ("/health", "/live", "/ready", "/version", "/metrics"):
        assert httpx.get(server.url + path).status_code == 200
    for headers in ({}, {"Authorization": "Bearer third"}, {"Authorization": "Basic secret"}):
        answer = httpx.get(f"{server.url}/v1/models", headers=headers)
        assert answer.status_code == 401 and answer.json()["error"]["type"] == "authentication_error"
    for key in ("secret", "another"):
        assert httpx.get(f"{server.url}/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200


def test_queue_full_is_429(narrow_server):
    results = []
    threads = [
        threading.Thread(
            target=lambda: results.append(
                httpx.post(f"{narrow_server.url}/v1/completions", json={**LONG, "max_tokens": 1000}, timeout=60)
            )
        )
        for _ in range(6)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    codes = sorted(r.status_code for r in results)
    assert codes[0] == 200 and codes[-1] == 429
    assert all(int(r.headers["retry-after"]) >= 1 for r in results if r.status_code == 429)
