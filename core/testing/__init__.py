"""The conformance kit: what a plugin of each kind must do, as plain functions that raise AssertionError.

For authors of plugins, and for the built-in ones: call a check from any test runner. A failure says which case failed
and how far off it was. Importing this loads no torch; the checks do, when they are first used. docs/plugins.md has an
example of each.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "ATTENTION_CASES": "attention",
    "AttentionCase": "attention",
    "Call": "parser",
    "GuidedCase": "guided",
    "PlainBackend": "plain_attention",
    "Transcript": "parser",
    "byte_vocabulary": "guided",
    "check_attention_backend": "attention",
    "check_executor": "executor",
    "check_guided_backend": "guided",
    "check_model": "model",
    "check_model_source": "source",
    "check_parser": "parser",
    "check_quantization": "quantization",
    "forward_batch": "batches",
    "transformers_reference": "model",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'core.testing' has no attribute {name!r}")
    return getattr(importlib.import_module(f"core.testing.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
