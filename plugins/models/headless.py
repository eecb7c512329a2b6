"""Checkpoints of decoders without a head, which embedding models are stored as: they embed, and generate nothing."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

from core.interfaces.model import ModelContext
from plugins.models.llama import LlamaForCausalLM
from plugins.models.mistral import MistralForCausalLM
from plugins.models.qwen2 import Qwen2ForCausalLM
from plugins.models.qwen3 import Qwen3ForCausalLM


class Headless:
    generates = False

    def __init__(self, context: ModelContext) -> None:
        config: Any = copy.copy(context.config)
        # the embeddings stand where the head would, so that steps are those of any decoder; nobody may ask for its logits
        config["tie_word_embeddings"] = True
        super().__init__(dataclasses.replace(context, config=config))  # type: ignore[call-arg]


class LlamaModel(Headless, LlamaForCausalLM): ...


class MistralModel(Headless, MistralForCausalLM): ...


class Qwen2Model(Headless, Qwen2ForCausalLM): ...


class Qwen3Model(Headless, Qwen3ForCausalLM): ...
