"""Token counts of responses."""

from __future__ import annotations

from collections.abc import Sequence

from core.outputs import RequestOutput
from server.openai.schema import SamplingBody, Usage


def usage_of(outputs: Sequence[RequestOutput]) -> Usage:
    prompt = sum(len(o.prompt_token_ids) for o in outputs)
    made = sum(len(c.token_ids) for o in outputs for c in o.outputs)
    cached = sum(o.num_cached_tokens for o in outputs)
    return Usage(prompt, made, prompt + made, {"cached_tokens": cached} if cached else None)


def include_usage(body: SamplingBody) -> tuple[bool, bool]:
    """(a last chunk with usage, usage on every chunk) of stream_options."""
    options = body.stream_options or {}
    continuous = bool(options.get("continuous_usage_stats"))
    return bool(options.get("include_usage")) or continuous, continuous
