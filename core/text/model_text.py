"""A model's tokenizer and chat template: what a client of its engine needs of the checkpoint."""

from __future__ import annotations

from pathlib import Path

from core.config import ModelConfig
from core.text.chat_template import ChatTemplate, read_template
from core.text.tokenizer import Tokenizer


class ModelText:
    """The tokenizer, None with skip_tokenizer_init, and the chat template, None where there is none."""

    def __init__(self, config: ModelConfig, folder: str | Path) -> None:
        """Raises ModelError for a tokenizer that cannot be read, ConfigError or RequestError for a template."""
        self.tokenizer = None if config.skip_tokenizer_init else Tokenizer.from_folder(config.tokenizer or folder)
        self.chat_template = self.template(config.chat_template)

    def template(self, given: str | None) -> ChatTemplate | None:
        """The one given (text, or a path), else the model's own."""
        source = None if given is None else read_template(given)
        if source is None and self.tokenizer is not None:
            source = self.tokenizer.chat_template
        if source is None:
            return None
        names = ("bos_token", "eos_token", "unk_token", "pad_token")
        special = {n: self.tokenizer.special_token(n) for n in names} if self.tokenizer else {}
        return ChatTemplate(source, special)
