"""Qwen2 and Qwen2.5: Llama with biases on q, k and v, and a window on the upper layers if it is switched on.

Source: arXiv:2407.10671.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plugins.models.llama import LlamaAttention, LlamaForCausalLM, LlamaLayer


def qwen_windows(config: Mapping[str, Any]) -> list[int | None]:
    layers = int(config["num_hidden_layers"])
    if not config.get("use_sliding_window", False):
        return [None] * layers
    first = int(config.get("max_window_layers", layers))
    return [config.get("sliding_window") if i >= first else None for i in range(layers)]


class Qwen2Attention(LlamaAttention):
    qkv_bias = True


class Qwen2Layer(LlamaLayer):
    attention_class = Qwen2Attention


class Qwen2ForCausalLM(LlamaForCausalLM):
    layer_class = Qwen2Layer
    windows = staticmethod(qwen_windows)
