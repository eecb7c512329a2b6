"""Spans of a real server process, received over OTLP and HTTP as a collector receives them."""

from __future__ import annotations

import gzip
import http.server
import socket
import threading
import time
from typing import Any

import httpx
import pytest

from core.errors import ConfigError
from server.config import ServerConfig

pytest.importorskip("opentelemetry.sdk", reason="the extra `otel` is not installed")

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector:
    """Takes OTLP over HTTP."""

    def __init__(self) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        self.spans: list[Any] = []
        self.resources: list[dict[str, Any]] = []
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                message = ExportTraceServiceRequest.FromString(body)
                for group in message.resource_spans:
                    collector.resources.append(values(group.resource.attributes))
                    collector.spans += [span for scope in group.scope_spans for span in scope.spans]
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.end_headers()

            def log_message(self, *_: Any) -> None: ...

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1/traces"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def wait(self, count: int) -> list[Any]:
        deadline = time.monotonic() + 10
        while len(self.spans) < count and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(self.spans) >= count, f"{len(self.spans)} spans came, not {count}"
        return self.spans

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def values(attributes: Any) -> dict[str, Any]:
    found = {}
    for pair in attributes:
        kind = pair.value.WhichOneof("value")
        value = getattr(pair.value, kind)
        found[pair.key] = [v.string_value for v in value.values] if kind == "array_value" else value
    return found


@pytest.fixture
def collector():
    running = Collector()
    yield running
    running.close()


@pytest.fixture(scope="module")
def module_collector():
    running = Collector()
    yield running
    running.close()


@pytest.fixture(scope="module")
def module_server(module_collector, start_module_server):
    env = {"OTEL_BSP_SCHEDULE_DELAY": "100"}  # ms between two exports
    return start_module_server(server={"otlp_traces_endpoint": module_collector.url}, env=env)


@pytest.fixture
def traced(module_server, module_collector):
    """A server and its collector, which has no spans yet."""
    module_collector.spans.clear()
    return module_server, module_collector


def test_one_span_a_request_that_continues_the_callers_trace(traced):
    server, collector = traced
    body = {
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 3,
        "ignore_eos": True,
    }
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "mine"}
    before_ns = time.time_ns()
    answer = httpx.post(server.url + "/v1/chat/completions", json=body, headers=headers).json()
    after_ns = time.time_ns()
    (span,) = collector.wait(1)
    assert span.trace_id.hex() == TRACE and span.parent_span_id.hex() == PARENT
    assert span.name == "chat tiny" and span.kind == 2
    assert before_ns - 5e6 < span.start_time_unix_nano < span.end_time_unix_nano < after_ns + 5e6
    (event,) = span.events
    assert event.name == "first token" and span.start_time_unix_nano < event.time_unix_nano < span.end_time_unix_nano
    found = values(span.attributes)
    usage = answer["usage"]
    assert found["gen_ai.operation.name"] == "chat"
    assert found["gen_ai.request.model"] == found["gen_ai.response.model"] == "tiny"
    assert found["gen_ai.request.id"] == answer["id"] == "chatcmpl-mine"
    assert found["gen_ai.request.max_tokens"] == 7 and found["gen_ai.request.seed"] == 3
    assert (found["gen_ai.request.temperature"], found["gen_ai.request.top_p"]) == (0.5, 0.9)
    assert found["gen_ai.usage.input_tokens"] == found["gen_ai.usage.prompt_tokens"] == usage["prompt_tokens"]
    assert found["gen_ai.usage.output_tokens"] == found["gen_ai.usage.completion_tokens"] == 7
    assert found["gen_ai.response.finish_reasons"] == ["length"]
    queue, first = found["gen_ai.latency.time_in_queue"], found["gen_ai.latency.time_to_first_token"]
    assert 0 <= queue <= first <= found["gen_ai.latency.e2e"] < 30
    assert collector.resources[0]["service.name"] == "backplane"
    assert not any("hello" in str(v) for v in found.values()), "texts stay out of traces"


def test_streams_aborts_batches_and_what_is_not_sampled(traced):
    server, collector = traced
    url = server.url + "/v1/completions"
    unsampled = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
    assert httpx.post(url, json={"prompt": "x", "max_tokens": 1}, headers=unsampled).status_code == 200
    # refused before the engine: no span
    assert httpx.post(url, json={"prompt": "x", "max_tokens": -1}).status_code == 400
    body = {"prompt": "the engine", "max_tokens": 3000, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", url, json=body) as stream:
        next(stream.iter_bytes())
    spans = collector.wait(1)
    assert values(spans[0].attributes)["gen_ai.response.finish_reasons"] == ["abort"]
    assert spans[0].name == "text_completion tiny" and not spans[0].parent_span_id
    answer = httpx.post(url, json={"prompt": ["a", "b", "c"], "n": 2, "max_tokens": 2, "ignore_eos": True})
    assert len(answer.json()["choices"]) == 6
    batch = [values(s.attributes) for s in collector.wait(4)[1:]]
    assert [b["gen_ai.usage.num_sequences"] for b in batch] == [2, 2, 2]
    assert [b["gen_ai.usage.output_tokens"] for b in batch] == [4, 4, 4]
    assert len({s.span_id for s in collector.spans}) == len(collector.spans) == 4


def test_what_is_left_is_sent_at_the_end(collector, start_server):
    running = start_server(server={"otlp_traces_endpoint": collector.url})
    httpx.post(running.url + "/v1/completions", json={"prompt": "x", "max_tokens": 1})
    assert not collector.spans
    running.stop()
    assert len(collector.spans) == 1


def test_a_collector_that_is_away_costs_no_request(start_server, monkeypatch):
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "2")  # seconds that the exporter tries again; 10 unless told
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        running = start_server(server={"otlp_traces_endpoint": f"http://127.0.0.1:{nobody.getsockname()[1]}/v1/traces"})
        for _ in range(5):
            answer = httpx.post(running.url + "/v1/completions", json={"prompt": "x", "max_tokens": 2}, timeout=5)
            assert answer.status_code == 200
            time.sleep(0.1)
        begun = time.monotonic()
        running.process.terminate()
        running.process.wait(20)
        assert time.monotonic() - begun < 15


def test_another_protocol_is_refused():
    with pytest.raises(ConfigError, match="is no http or https address"):
        ServerConfig(otlp_traces_endpoint="grpc://127.0.0.1:4317")
