"""/metrics, for Prometheus: each metric as `backplane:NAME` and again as `vllm:NAME`, so that dashboards go on working."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from core.messages import EngineStats, Finished
from core.outputs import RequestOutput

PREFIXES = ("backplane:", "vllm:")
WINDOW_S = 10.0
"""Throughputs are means over this long."""

SECONDS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
TOKEN_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Metrics:
    """An observer of the engine, and a collector of its own registry."""

    def __init__(self, model_name: str) -> None:
        self._model = model_name
        self._inner = CollectorRegistry()
        labels = ["model_name"]

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            found = Histogram(name, text, labels, registry=self._inner, buckets=buckets)
            return found.labels(model_name)

        self._ttft = histogram("time_to_first_token_seconds", "Arrival to first token", SECONDS)
        self._tpot = histogram("time_per_output_token_seconds", "Mean time of a token after the first", TOKEN_SECONDS)
        self._itl = histogram("inter_token_latency_seconds", "Between two tokens of a stream", TOKEN_SECONDS)
        self._e2e = histogram("e2e_request_latency_seconds", "Arrival to last token", SECONDS)
        self._queue = histogram("request_queue_time_seconds", "Arrival to first step", SECONDS)
        self._success = Counter(
            "request_success", "Finished sequences", [*labels, "finished_reason"], registry=self._inner
        )
        self._stats = EngineStats()
        self._history: deque[tuple[float, int, int]] = deque([(time.monotonic(), 0, 0)])
        self.registry = CollectorRegistry()
        self.registry.register(self)

    # ---- observer

    def request_finished(self, output: RequestOutput, finished: list[Finished]) -> None:
        for f in finished:
            self._success.labels(self._model, f.reason).inc()
            if f.reason not in ("stop", "length") or not f.first_token_time_s:
                continue
            self._ttft.observe(f.first_token_time_s - f.arrival_time_s)
            self._queue.observe(max(0.0, f.first_scheduled_time_s - f.arrival_time_s))
            self._e2e.observe(f.finish_time_s - f.arrival_time_s)
            if f.num_output_tokens > 1:
                self._tpot.observe((f.finish_time_s - f.first_token_time_s) / (f.num_output_tokens - 1))

    def tokens(self, count: int, gap_s: float) -> None:
        self._itl.observe(gap_s)

    def stats(self, stats: EngineStats) -> None:
        self._stats = stats
        now = time.monotonic()
        self._history.append((now, stats.prompt_tokens, stats.generation_tokens))
        while len(self._history) > 2 and self._history[1][0] < now - WINDOW_S:
            self._history.popleft()

    def throughput(self) -> tuple[float, float]:
        """Prompt and generated tokens a second, over the last WINDOW_S."""
        now = time.monotonic()
        while len(self._history) > 1 and self._history[1][0] < now - WINDOW_S:
            self._history.popleft()
        begun, prompt, generated = self._history[0]
        span = max(min(now - begun, WINDOW_S), 1e-3) if now - begun < WINDOW_S else WINDOW_S
        return (self._stats.prompt_tokens - prompt) / span, (self._stats.generation_tokens - generated) / span

    # ---- collector

    def collect(self) -> Iterable[Metric]:
        s = self._stats
        used = 1 - s.num_free_blocks / s.num_blocks if s.num_blocks else 0.0
        prompt_rate, generation_rate = self.throughput()
        gauges: list[tuple[str, str, float]] = [
            ("num_requests_running", "Sequences in the batch", s.num_running),
            ("num_requests_waiting", "Sequences that wait", s.num_waiting),
            ("num_requests_swapped", "Sequences swapped out to host memory", s.num_swapped),
            ("kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1", used),
            ("gpu_cache_usage_perc", "The same under its older name", used),
            ("cpu_cache_usage_perc", "Share of host swap blocks in use", 0.0),
            ("avg_prompt_throughput_toks_per_s", f"Prompt tokens a second, last {WINDOW_S:.0f} s", prompt_rate),
            ("avg_generation_throughput_toks_per_s", f"New tokens a second, last {WINDOW_S:.0f} s", generation_rate),
        ]
        counters: list[tuple[str, str, float]] = [
            ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache", s.prefix_cache_queries),
            ("prefix_cache_hits", "Prompt tokens found there", s.prefix_cache_hits),
            ("prompt_tokens", "Prompt tokens taken in", s.prompt_tokens),
            ("generation_tokens", "Tokens generated", s.generation_tokens),
            ("num_preemptions", "Sequences pushed back to the queue", s.num_preemptions),
        ]
        for prefix in PREFIXES:
            for families, kind in ((gauges, GaugeMetricFamily), (counters, CounterMetricFamily)):
                for name, text, value in families:
                    family: Any = kind(prefix + name, text, labels=["model_name"])
                    family.add_metric([self._model], value)
                    yield family
            for inner in self._inner.collect():
                renamed = Metric(prefix + inner.name, inner.documentation, inner.type)
                renamed.samples = [s._replace(name=prefix + s.name) for s in inner.samples]
                yield renamed
