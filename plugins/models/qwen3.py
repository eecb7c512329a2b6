"""Qwen3 (dense): Llama with an RMS norm on every query and key head. Source: arXiv:2505.09388."""

from __future__ import annotations

from plugins.models.llama import LlamaAttention, LlamaForCausalLM, LlamaLayer
from plugins.models.qwen2 import qwen_windows


class Qwen3Attention(LlamaAttention):
    qk_norm = True


class Qwen3Layer(LlamaLayer):
    attention_class = Qwen3Attention


class Qwen3ForCausalLM(LlamaForCausalLM):
    layer_class = Qwen3Layer
    windows = staticmethod(qwen_windows)
