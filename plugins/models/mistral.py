"""Mistral: Llama with a sliding window over the context. Source: arXiv:2310.06825."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plugins.models.llama import LlamaForCausalLM


class MistralForCausalLM(LlamaForCausalLM):
    @staticmethod
    def windows(config: Mapping[str, Any]) -> list[int | None]:
        return [config.get("sliding_window")] * int(config["num_hidden_layers"])
