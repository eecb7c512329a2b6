"""A checkpoint's tokenizer, read from tokenizer.json by `tokenizers` itself (transformers only where that is missing)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from core.errors import ModelError, RequestError

_BEFORE = "a"


class Tokenizer:
    """A tokenizer of the `tokenizers` library with its settings and chat template."""

    def __init__(self, backend: Any, settings: dict[str, Any], chat_template: str | None, file: str | None) -> None:
        """backend: tokenizers.Tokenizer."""
        self.backend = backend
        self.settings = settings
        self.chat_template = chat_template
        self.file = file
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        import tokenizers

        folder = Path(folder)
        settings = _json(folder / "tokenizer_config.json")
        path = folder / "tokenizer.json"
        file: str | None = str(path)
        if path.is_file():
            try:
                backend = tokenizers.Tokenizer.from_file(str(path))
            except Exception as error:  # tokenizers raises bare Exception
                raise ModelError(f"{path} cannot be read: {error}") from error
        else:
            try:
                from transformers import AutoTokenizer

                backend, file = AutoTokenizer.from_pretrained(folder).backend_tokenizer, None
            except Exception as error:  # whatever the model's own tokenizer class raises
                raise ModelError(
                    f"{folder} has no tokenizer.json and transformers cannot read its tokenizer ({error}); "
                    "pass tokenizer=..., or skip_tokenizer_init=True for token ids only"
                ) from error
        template = settings.get("chat_template")
        if isinstance(template, list):  # several, by name
            template = {t["name"]: t["template"] for t in template}.get("default")
        if (folder / "chat_template.jinja").is_file():
            template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
        elif (folder / "chat_template.json").is_file():
            template = _json(folder / "chat_template.json").get("chat_template", template)
        backend.no_truncation()
        backend.no_padding()
        return cls(backend, settings, template, file)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return self.encode_batch([text], add_special_tokens)[0]

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        """Raises RequestError for text that is not valid Unicode. Other threads run meanwhile."""
        for text in texts:
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise RequestError(
                    f"the prompt holds a lone surrogate at character {error.start}, which is no Unicode text",
                    param="prompt",
                ) from error
        encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        return [e.ids for e in encodings]

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return str(self.backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens))

    def decode_output(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text that tokens add behind others. `decode` takes them for the beginning of a text, where sentencepiece's
        decoders drop a blank."""
        text = self.decode([*self.before_output, *token_ids], skip_special_tokens)
        return text.removeprefix(_BEFORE) if self.before_output else text

    @cached_property
    def before_output(self) -> tuple[int, ...]:
        """A token to decode before those of an output, whose text is one known letter; () where there is none."""
        ids = self.encode(_BEFORE, add_special_tokens=False)
        return tuple(ids) if len(ids) == 1 and self.decode(ids) == _BEFORE else ()

    def token_text(self, token_id: int) -> str:
        """One token alone, as text for logprobs."""
        return self.decode_output([token_id], skip_special_tokens=False)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        return frozenset(i for i, t in self.backend.get_added_tokens_decoder().items() if t.special)

    def special_token(self, name: str) -> str | None:
        """bos_token, eos_token ... as text."""
        value = self.settings.get(name)
        return value.get("content") if isinstance(value, dict) else value

    def token_bytes(self) -> list[bytes]:
        """The bytes that each token id adds to the text; empty for special tokens."""
        from core.text.token_bytes import token_bytes

        return token_bytes(self.backend, self.special_ids, self.vocab_size)


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ModelError(f"{path} is not a JSON object: {error}") from error
