"""What Engine and AsyncEngine share: the tokenizer, the chat template, both processors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from core.config import EngineConfig
from core.engine.input_processor import InputProcessor
from core.engine.output_processor import OutputProcessor
from core.errors import RequestError, nearest
from core.messages import EngineReady
from core.pooling import pooling_type
from core.text.chat_template import ChatTemplate
from core.text.model_text import ModelText


class ClientSide:
    """What stands before and after an engine wherever it runs: templates, tokens, checks, and outputs as text."""

    def __init__(
        self, config: EngineConfig, ready: EngineReady, first_number: int = 0, text: ModelText | None = None
    ) -> None:
        """`first_number`: handles are drawn from there on. `text`: if it has been loaded already."""
        model = config.model
        self._text = text or ModelText(model, ready.model_path)
        self.tokenizer, self.chat_template = self._text.tokenizer, self._text.chat_template
        self.inputs = InputProcessor(ready, self.tokenizer, model.seed, first_number)
        self.outputs = OutputProcessor(self.tokenizer, ready.eos_token_ids)
        self.pooling_type = pooling_type(model.pooling_type, ready.model_path)

    def template_for(self, given: str | None, options: Mapping[str, Any]) -> ChatTemplate | None:
        """The template to render with, the model's or the one given (text, or a path).

        Raises RequestError for an option that it does not read, which would be ignored in silence.
        """
        template = self.chat_template if given is None else self._text.template(given)
        own = ("add_generation_prompt", "continue_final_message")
        for name in options:
            if template and name not in own and not re.search(rf"\b{re.escape(name)}\b", template.source):
                known = ("tools", "params", "sampling_params", "use_tqdm", "stream", "chat_template", *own)
                raise RequestError(
                    f"option {name!r} is not known, and the chat template does not read it{nearest(name, known)}",
                    param=name,
                )
        return template

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None, **options: Any
    ) -> str:
        """Messages -> prompt text, by the model's template. Raises RequestError."""
        return self.render_with(self.chat_template, messages, tools, **options)

    def render_with(
        self,
        template: ChatTemplate | None,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        /,
        **options: Any,
    ) -> str:
        """Messages -> prompt text, by this template. Options may have any name: requests bring them."""
        if not messages:
            raise RequestError("messages is empty; give at least one message", param="messages")
        if template is None:
            raise RequestError(
                "the model has no chat template; use completions, or start the engine with --chat-template",
                param="messages",
            )
        return template.render(messages, tools, **options)
