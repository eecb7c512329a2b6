"""Backplane's core: schedules, batches, caches, samples. Names are imported when first used (PEP 562)."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "AsyncEngine": "core.engine.async_engine",
    "AsyncEngineArgs": "core.compat",
    "AsyncLLMEngine": "core.compat",
    "BackplaneError": "core.errors",
    "BeamSearchParams": "core.beam_search",
    "CompletionOutput": "core.outputs",
    "Engine": "core.engine.engine",
    "EngineConfig": "core.config",
    "GuidedDecodingParams": "core.sampling_params",
    "LLM": "core.compat",
    "RequestError": "core.errors",
    "RequestOutput": "core.outputs",
    "SamplingParams": "core.sampling_params",
    "StructuredOutputsParams": "core.compat",
    "hookimpl": "core.hookspecs",
}

__all__ = sorted([*_HOMES, "__version__"])  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'core' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
