"""OpenTelemetry: one span for every prompt that the engine takes, sent over OTLP and HTTP. Needs the extra `otel`.

The span continues the caller's trace (W3C traceparent) and begins when the engine client takes the request. Attributes
have OpenTelemetry's names (gen_ai.*), and vLLM's where those differ. No text of a prompt or an answer is in them.
OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_HEADERS and the rest of the SDK's variables hold.
"""

from __future__ import annotations

import time
from contextvars import ContextVar
from typing import Any

from core.errors import ConfigError
from core.messages import AddRequest, EngineStats, Finished
from core.outputs import RequestOutput

scope: ContextVar[Any] = ContextVar("backplane_scope", default=None)
"""ASGI scope of the HTTP request that this task serves."""

_OPERATIONS = {"/v1/completions": "text_completion", "/v1/embeddings": "embeddings"}


def _wall_ns(monotonic_s: float) -> int:
    return time.time_ns() - int((time.monotonic() - monotonic_s) * 1e9)


class Tracing:
    """Observer of the engine. The exporter has a thread of its own; a collector that is away costs spans, not requests."""

    def __init__(self, endpoint: str, model_name: str) -> None:
        try:
            from opentelemetry import propagate, trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise ConfigError(
                f"otlp_traces_endpoint needs OpenTelemetry ({error}): pip install 'backplane[otel]'"
            ) from error
        self._propagate, self._trace = propagate, trace
        self._model = model_name
        resource = Resource.create()
        if str(resource.attributes.get("service.name", "")).startswith("unknown_service"):
            resource = resource.merge(Resource({"service.name": "backplane"}))
        # the provider sends what is left when the process ends
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        self._tracer = self._provider.get_tracer("backplane")
        self._spans: dict[str, Any] = {}

    def request_started(self, request: AddRequest) -> None:
        http = scope.get()
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in http["headers"]} if http else {}
        operation = _OPERATIONS.get(http["path"], "chat") if http else "generate"
        params = request.params
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "backplane",
            "gen_ai.request.model": self._model,
            "gen_ai.request.id": request.request_id.rpartition("#")[0] or request.request_id,
            "gen_ai.request.n": params.n,
            "gen_ai.request.choice.count": params.n,
            "gen_ai.request.temperature": params.temperature,
            "gen_ai.request.top_p": params.top_p,
            "gen_ai.request.top_k": params.top_k,
            "gen_ai.request.frequency_penalty": params.frequency_penalty,
            "gen_ai.request.presence_penalty": params.presence_penalty,
            "gen_ai.request.max_tokens": params.max_tokens,
            "gen_ai.request.seed": params.seed,
            "gen_ai.request.stream": request.stream,
            "gen_ai.request.stop_sequences": list(params.stop or ()) or None,
        }
        self._spans[request.request_id] = self._tracer.start_span(
            f"{operation} {self._model}",
            context=self._propagate.extract(headers),
            kind=self._trace.SpanKind.SERVER,
            start_time=_wall_ns(request.arrival_time_s),
            attributes={k: v for k, v in attributes.items() if v is not None},
        )

    def request_finished(self, output: RequestOutput, finished: list[Finished]) -> None:
        span = self._spans.pop(output.request_id, None)
        if span is None:
            return
        num_prompt, num_output = len(output.prompt_token_ids), sum(f.num_output_tokens for f in finished)
        attributes: dict[str, Any] = {
            "gen_ai.response.model": self._model,
            "gen_ai.response.finish_reasons": [f.reason for f in finished],
            "gen_ai.usage.input_tokens": num_prompt,
            "gen_ai.usage.output_tokens": num_output,
            "gen_ai.usage.prompt_tokens": num_prompt,
            "gen_ai.usage.completion_tokens": num_output,
            "gen_ai.usage.num_sequences": len(finished),
            "gen_ai.usage.cache_read.input_tokens": output.num_cached_tokens,
        }
        end_s = max((f.finish_time_s for f in finished), default=0.0) or time.monotonic()
        if finished:
            first = finished[0]
            begun_s, admitted_s, token_s = first.arrival_time_s, first.first_scheduled_time_s, first.first_token_time_s
            if begun_s:
                attributes["gen_ai.latency.e2e"] = end_s - begun_s
            if admitted_s:
                attributes["gen_ai.latency.time_in_queue"] = admitted_s - begun_s
                attributes["gen_ai.latency.time_in_model_inference"] = end_s - admitted_s
            if token_s:
                attributes["gen_ai.latency.time_to_first_token"] = token_s - begun_s
                attributes["gen_ai.latency.time_in_model_decode"] = end_s - token_s
                span.add_event("first token", timestamp=_wall_ns(token_s))
            if admitted_s and token_s:
                attributes["gen_ai.latency.time_in_model_prefill"] = token_s - admitted_s
        span.set_attributes(attributes)
        errors = [f.error or f.reason for f in finished if f.reason == "error"]
        if errors:
            span.set_attribute("error.type", "engine_error")
            span.set_status(self._trace.StatusCode.ERROR, errors[0])
        span.end(end_time=_wall_ns(end_s))

    def tokens(self, count: int, gap_s: float) -> None: ...

    def stats(self, stats: EngineStats) -> None: ...
