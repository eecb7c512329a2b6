"""Prometheus metrics of one app: gauges and counters read from EngineStats, histograms fed as an engine observer.

What is fed is summed over all server processes (server/tally.py), so that it does not matter which of them answers.
Every metric appears as `backplane:NAME` and again as `vllm:NAME`, so that existing dashboards work.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from core.messages import AddRequest, EngineStats, Finished
from core.outputs import RequestOutput
from server.tally import ENGINE_RESTARTS, Tally

PREFIXES = ("backplane", "vllm")
CONTENT_TYPE = CONTENT_TYPE_LATEST
_RATE_WINDOW_S = 10.0
_FINISH_REASONS = ("stop", "length", "abort", "error", "other")

_GAP = (
    *(0.001, 0.0015, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1),
    *(0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10, 20, 40, 80),
)
"""Between two tokens. A person reads 5 to 15 tokens a second, a GPU makes one in 2 to 50 ms: most bounds lie there."""
_FIRST = (
    *(0.001, 0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 0.75, 1, 1.5, 2.5, 5, 7.5, 10),
    *(20, 40, 80, 160, 640, 2560),
)
_QUEUE = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 1.5, 2.5, 5, 10, 15, 20, 30, 40, 60, 120, 240),
    *(480, 960, 1920, 7680),
)
"""From nothing at all (the next step takes it) to a batch job's hours."""
_SECONDS = (
    *(0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960),
    *(1920, 7680),
)
_TOKENS = (
    *(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000),
    1_000_000,
)
_COUNT = (1, 2, 5, 10, 20)


class Histogram:
    """Counts by bucket. No lock: everything here happens on the server's event loop."""

    def __init__(self, tally: Tally, name: str, help: str, bounds: Sequence[float]) -> None:
        self.name, self.help, self.bounds = name, help, bounds
        self._tally, self._mine = tally, tally.mine
        self._size = len(bounds) + 1
        self._first = tally.take(self._size + 1)
        self._sum = self._first + self._size

    def observe(self, value: float, count: int = 1) -> None:
        mine = self._mine
        mine[self._first + bisect_left(self.bounds, value)] += count
        mine[self._sum] += value * count

    def counts(self) -> tuple[int, ...]:
        """Observations of each bucket so far, not cumulative; the last is beyond all bounds."""
        return tuple(map(int, self._tally.totals(self._first, self._size)))

    def quantile(self, counts: Sequence[int], q: float) -> float | None:
        """The q-quantile (0 to 1) of observations given as `counts`, linear within a bucket. None: there are none."""
        rank, seen = q * sum(counts), 0
        if not rank:
            return None
        for i, count in enumerate(counts[:-1]):
            if count and seen + count >= rank:
                below = self.bounds[i - 1] if i else 0.0
                return below + (self.bounds[i] - below) * (rank - seen) / count
            seen += count
        return float(self.bounds[-1])

    def family(self, prefix: str, model: str) -> Metric:
        total, buckets = 0, []
        for bound, count in zip((*map(str, map(float, self.bounds)), "+Inf"), self.counts(), strict=True):
            total += count
            buckets.append((bound, total))
        family = HistogramMetricFamily(f"{prefix}:{self.name}", self.help, labels=["model_name"])
        family.add_metric([model], buckets, sum_value=self._tally.totals(self._sum)[0])
        return family


class Throughput:
    """Tokens a second over the last seconds, from counters."""

    def __init__(self) -> None:
        self._points: deque[tuple[float, int, int]] = deque()

    def add(self, now_s: float, prompt: int, generation: int) -> None:
        if not self._points or now_s - self._points[-1][0] >= 0.5:
            self._points.append((now_s, prompt, generation))
        while len(self._points) > 2 and now_s - self._points[1][0] > _RATE_WINDOW_S:
            self._points.popleft()

    def rates(self, now_s: float, prompt: int, generation: int) -> tuple[float, float]:
        if not self._points:
            return 0.0, 0.0
        past = next((p for p in self._points if now_s - p[0] <= _RATE_WINDOW_S), self._points[-1])
        elapsed = now_s - past[0]
        if elapsed <= 0:
            return 0.0, 0.0
        return (prompt - past[1]) / elapsed, (generation - past[2]) / elapsed


class Metrics(Collector):
    """Observer of the engine and collector of one CollectorRegistry."""

    def __init__(
        self,
        model_name: str,
        last_stats: Callable[[], EngineStats | None],
        failure: Callable[[], str | None] = lambda: None,
        tally: Tally | None = None,
    ) -> None:
        """`failure` says why the engine is dead; None while it lives."""
        self.tally = tally = tally or Tally()
        self.model_name = model_name
        self._last_stats, self._failure = last_stats, failure
        self._success = tally.take(len(_FINISH_REASONS))
        self._throughput = Throughput()
        self._throughput.add(time.monotonic(), 0, 0)
        self.ttft = Histogram(tally, "time_to_first_token_seconds", "Seconds from arrival to the first token.", _FIRST)
        self.tpot = Histogram(tally, "time_per_output_token_seconds", "Mean seconds of a token after the first.", _GAP)
        self.itl = Histogram(tally, "inter_token_latency_seconds", "Seconds between two tokens of a stream.", _GAP)
        self.e2e = Histogram(tally, "e2e_request_latency_seconds", "Seconds from arrival to the end.", _SECONDS)
        self.queue = Histogram(tally, "request_queue_time_seconds", "Seconds from arrival to the first step.", _QUEUE)
        self.prefill = Histogram(
            tally, "request_prefill_time_seconds", "Seconds from first step to first token.", _FIRST
        )
        self.decode = Histogram(tally, "request_decode_time_seconds", "Seconds from first token to the end.", _SECONDS)
        self.inference = Histogram(
            tally, "request_inference_time_seconds", "Seconds from first step to the end.", _SECONDS
        )
        self.prompt_tokens = Histogram(tally, "request_prompt_tokens", "Prompt tokens of a request.", _TOKENS)
        self.output_tokens = Histogram(tally, "request_generation_tokens", "Output tokens of a sequence.", _TOKENS)
        self.max_tokens = Histogram(tally, "request_params_max_tokens", "max_tokens of requests that set it.", _TOKENS)
        self.n = Histogram(tally, "request_params_n", "n of requests.", _COUNT)
        self._histograms = [v for v in vars(self).values() if isinstance(v, Histogram)]
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self)

    def request_started(self, request: AddRequest) -> None:
        self.n.observe(request.params.n)
        if request.params.max_tokens is not None:
            self.max_tokens.observe(request.params.max_tokens)

    def request_finished(self, output: RequestOutput, finished: list[Finished]) -> None:
        for f in finished:
            reason = f.reason if f.reason in _FINISH_REASONS else "other"
            self.tally.mine[self._success + _FINISH_REASONS.index(reason)] += 1
            self.output_tokens.observe(f.num_output_tokens)
            if f.first_token_time_s:
                self.ttft.observe(max(0.0, f.first_token_time_s - f.arrival_time_s))
            if f.first_scheduled_time_s:  # not known of a sequence that ended at a stop string
                self.queue.observe(max(0.0, f.first_scheduled_time_s - f.arrival_time_s))
                if f.first_token_time_s:
                    self.prefill.observe(max(0.0, f.first_token_time_s - f.first_scheduled_time_s))
                if f.finish_time_s:
                    self.inference.observe(max(0.0, f.finish_time_s - f.first_scheduled_time_s))
            if not (f.first_token_time_s and f.finish_time_s):
                continue
            self.e2e.observe(max(0.0, f.finish_time_s - f.arrival_time_s))
            decode_s = max(0.0, f.finish_time_s - f.first_token_time_s)
            self.decode.observe(decode_s)
            if f.num_output_tokens > 1:
                self.tpot.observe(decode_s / (f.num_output_tokens - 1))
        if finished:
            self.prompt_tokens.observe(finished[0].num_prompt_tokens)

    def tokens(self, n: int, gap_s: float) -> None:
        self.itl.observe(gap_s, n)

    def stats(self, stats: EngineStats) -> None:
        self._throughput.add(time.monotonic(), stats.prompt_tokens, stats.generation_tokens)

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        for prefix in PREFIXES:
            yield from self._families(prefix)

    def _families(self, prefix: str) -> Iterator[Metric]:
        s = self._last_stats() or EngineStats()
        now_s = time.monotonic()
        prompt_rate, generation_rate = self._throughput.rates(now_s, s.prompt_tokens, s.generation_tokens)
        usage = 1 - s.num_free_blocks / s.num_blocks if s.num_blocks else 0.0
        gauges: list[tuple[str, str, float]] = [
            ("num_requests_running", "Sequences in the running batch.", s.num_running),
            ("num_requests_waiting", "Sequences that wait for admission.", s.num_waiting),
            ("num_requests_swapped", "Sequences swapped out to host memory.", s.num_swapped),
            ("kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1.", usage),
            ("gpu_cache_usage_perc", "Share of KV blocks in use, 0 to 1 (older name).", usage),
            ("cpu_cache_usage_perc", "Share of swapped KV blocks in use, 0 to 1.", 0.0),
            ("num_kv_cache_blocks", "KV blocks that there are.", s.num_blocks),
            ("engine_up", "1 while the engine process lives, else 0.", 0.0 if self._failure() else 1.0),
            ("avg_prompt_throughput_toks_per_s", "Prompt tokens a second, last 10 s.", prompt_rate),
            ("avg_generation_throughput_toks_per_s", "Output tokens a second, last 10 s.", generation_rate),
        ]
        engine_restarts, server_restarts = self.tally.totals(ENGINE_RESTARTS, 2)
        counters: list[tuple[str, str, float]] = [
            ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", s.prefix_cache_queries),
            ("prefix_cache_hits", "Prompt tokens found in the prefix cache.", s.prefix_cache_hits),
            ("prompt_tokens", "Prompt tokens processed.", s.prompt_tokens),
            ("generation_tokens", "Tokens generated.", s.generation_tokens),
            ("num_preemptions", "Preemptions.", s.num_preemptions),
            ("engine_steps", "Steps of the engine.", s.num_steps),
            ("engine_restarts", "Times that a dead engine process was started again.", engine_restarts),
            ("server_restarts", "Times that a dead server process was started again.", server_restarts),
        ]
        for name, help, value in gauges:
            gauge = GaugeMetricFamily(f"{prefix}:{name}", help, labels=["model_name"])
            gauge.add_metric([self.model_name], value)
            yield gauge
        for name, help, count in counters:
            counter = CounterMetricFamily(f"{prefix}:{name}", help, labels=["model_name"])
            counter.add_metric([self.model_name], count)
            yield counter
        success = CounterMetricFamily(
            f"{prefix}:request_success", "Finished sequences by reason.", labels=["model_name", "finished_reason"]
        )
        for reason, ended in zip(_FINISH_REASONS, self.tally.totals(self._success, len(_FINISH_REASONS)), strict=True):
            success.add_metric([self.model_name, reason], ended)
        yield success
        for histogram in self._histograms:
            yield histogram.family(prefix, self.model_name)

    def exposition(self) -> bytes:
        return generate_latest(self.registry)
