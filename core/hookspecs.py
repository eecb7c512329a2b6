"""The extension points, version 1. Hooks register; none is called once the engine runs.

A plugin is a module named by an entry point in the group `backplane.plugins`. It marks functions with `hookimpl`;
each gets `register(name, target, **info)`, where target is "module:attribute" and is imported only when chosen.
`needs={"module": "how to install it"}` names modules without which the target is of no use.
"""

from __future__ import annotations

from collections.abc import Callable

import pluggy

PROJECT = "backplane"
API_VERSION = 1
ENTRY_POINT_GROUP = "backplane.plugins"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

Register = Callable[..., None]

KINDS: dict[str, str] = {
    "model": "register_models",
    "quantization": "register_quantization",
    "attention_backend": "register_attention_backends",
    "guided_backend": "register_guided_backends",
    "tool_parser": "register_tool_parsers",
    "reasoning_parser": "register_reasoning_parsers",
    "model_source": "register_model_sources",
    "executor": "register_executors",
}
"""Kind of plugin -> the hook that registers it."""


@hookspec
def register_models(register: Register) -> None:
    """Architectures, by the name in config.json's `architectures`. Target: core.interfaces.model.Model."""


@hookspec
def register_quantization(register: Register) -> None:
    """Quantization methods. Target: core.interfaces.quantization.QuantizationMethod."""


@hookspec
def register_attention_backends(register: Register) -> None:
    """Attention backends. Target: core.interfaces.attention.AttentionBackend; info: devices=("cuda",)."""


@hookspec
def register_guided_backends(register: Register) -> None:
    """Guided-decoding backends. Target: core.interfaces.guided.GuidedBackend."""


@hookspec
def register_tool_parsers(register: Register) -> None:
    """Tool-call parsers. Target: core.interfaces.parser.OutputParser; info: markers=("<tool_call>",), strings that
    a chat template holds when the parser fits it."""


@hookspec
def register_reasoning_parsers(register: Register) -> None:
    """Reasoning parsers; as tool-call parsers."""


@hookspec
def register_model_sources(register: Register) -> None:
    """Where checkpoints come from. Target: core.interfaces.source.ModelSource."""


@hookspec
def register_executors(register: Register) -> None:
    """Where the model runs. Target: core.interfaces.executor.Executor."""
