"""Chat messages -> prompt text, by the model's Jinja template in a sandbox, with the conventions of the field."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.errors import ConfigError, RequestError


def read_template(given: str) -> str:
    """The text of a template that is given as text or as the path of a file. Raises ConfigError."""
    if "{" in given:
        return given
    try:
        text = Path(given).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"chat_template={given!r} is no template (it has no {{) and cannot be read as a file: {error}"
        ) from None
    if "{" not in text:
        raise ConfigError(f"chat_template={given!r} is a file that holds no template: it has no {{")
    return text


class ChatTemplate:
    """A model's Jinja template, in a sandbox."""

    def __init__(self, source: str, special_tokens: Mapping[str, str | None] = {}) -> None:  # noqa: B006 (never changed)
        import jinja2
        from jinja2.ext import Extension, loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        class Generation(Extension):
            """`{% generation %}` marks the assistant's text for training; here it means nothing."""

            tags = {"generation"}

            def parse(self, parser: Any) -> Any:
                next(parser.stream)
                return parser.parse_statements(("name:endgeneration",), drop_needle=True)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise RequestError(f"the chat template is not valid Jinja: {error}", param="chat_template") from error
        self._special = {k: v for k, v in special_tokens.items() if v is not None}
        self.source = source

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> str:
        """Raises RequestError with the template's own words when it refuses the messages."""
        if continue_final_message and add_generation_prompt:
            raise RequestError(
                "continue_final_message and add_generation_prompt exclude each other", param="continue_final_message"
            )
        try:
            text = self._template.render(
                messages=list(messages),
                tools=list(tools) if tools else None,
                add_generation_prompt=add_generation_prompt,
                **self._special,
                **variables,
            )
        except Exception as error:  # a template runs arbitrary expressions on the user's messages
            raise RequestError(f"the chat template refused these messages: {error}", param="messages") from error
        if continue_final_message:
            last = str(messages[-1].get("content") or "").strip()
            cut = text.rfind(last)
            if not last or cut < 0:
                raise RequestError("there is no final message to continue", param="continue_final_message")
            text = text[: cut + len(last)]
        return str(text)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise(message: str) -> None:
    raise ValueError(message)
