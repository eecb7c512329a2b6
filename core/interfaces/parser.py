"""The contract of tool-call and reasoning parsers: text in pieces -> events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import msgspec


class Text(msgspec.Struct, frozen=True, tag=True):
    """A piece of the answer's content."""

    text: str


class Reasoning(msgspec.Struct, frozen=True, tag=True):
    """A piece of what the model thinks aloud."""

    text: str


class ToolCallBegin(msgspec.Struct, frozen=True, tag=True):
    """A tool call opens. Calls are numbered from 0; call_id: the format's own, if it has one."""

    index: int
    name: str
    call_id: str | None = None


class ToolCallArguments(msgspec.Struct, frozen=True, tag=True):
    """A piece of the arguments' JSON text; the pieces of one index add up to valid JSON."""

    index: int
    json: str


class ToolCallEnd(msgspec.Struct, frozen=True, tag=True):
    """The call's arguments are complete."""

    index: int


Event = Text | Reasoning | ToolCallBegin | ToolCallArguments | ToolCallEnd


class OutputParser(Protocol):
    """One sequence's parser: `Parser(tools)`; linear in the length of the output.

    A tool parser's class may have `strict_format(tools) -> dict`, a static method: the format of a structural tag in which
    text is free until a call opens, and a call is one of these tools', with arguments that follow its `parameters`. It is
    what serves `strict: true`; without it such tools are refused where the model may choose. `strict_from_start = True`: the
    format is that of an output which begins a message, so it is not used to continue one. A reasoning parser's class may have
    `strict_around(format, opened_by) -> dict`: the same behind its reasoning, for a model that marks it by special tokens, which
    free text does not hold; opened_by: the marker that ends the prompt, or "".
    """

    def __init__(self, tools: Sequence[Mapping[str, Any]] = ()) -> None: ...

    def feed(self, text: str, token_ids: Sequence[int] = ()) -> Iterable[Event]:
        """Take the next piece of text, cut anywhere -> what is certain by now."""

    def finish(self) -> Iterable[Event]:
        """The output is over: whatever was held back comes out, as text if it became no call."""
