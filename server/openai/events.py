"""One answer's text -> content, reasoning and tool calls, through the parsers that the registry holds.

Parsers are plugins: an exception in one ends its parsing, never the request. What it held back becomes content.
"""

from __future__ import annotations

import json
import logging
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.interfaces.parser import Event, OutputParser, Reasoning, Text, ToolCallArguments, ToolCallBegin, ToolCallEnd
from server.errors import ApiError

log = logging.getLogger("backplane.server")


@dataclass(slots=True)
class CallDelta:
    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""

    def encoded(self) -> dict[str, Any]:
        function: dict[str, Any] = {"arguments": self.arguments}
        value: dict[str, Any] = {"index": self.index}
        if self.name is not None:
            function = {"name": self.name, "arguments": self.arguments}
            value |= {"id": self.id, "type": "function"}
        return {**value, "function": function}


@dataclass(slots=True)
class Delta:
    """What is new in one answer. Empty: nothing that a client could see."""

    content: str = ""
    reasoning: str = ""
    calls: dict[int, CallDelta] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.content or self.reasoning or self.calls)

    def encoded(self) -> dict[str, Any]:
        value: dict[str, Any] = {}
        if self.reasoning:
            value["reasoning_content"] = self.reasoning
        if self.content:
            value["content"] = self.content
        if self.calls:
            value["tool_calls"] = [c.encoded() for c in self.calls.values()]
        return value


class Answer:
    """One choice of a chat completion, fed with text, giving deltas."""

    def __init__(
        self,
        reasoning: OutputParser | None = None,
        tools: OutputParser | None = None,
        *,
        opened_by: str = "",
        single: bool = False,
    ) -> None:
        """`single`: calls after the first are left out (parallel_tool_calls is false)."""
        self._reasoning, self._tools, self._single = reasoning, tools, single
        self._first_call: int | None = None
        self._held = {"reasoning": "", "tool": ""}
        self.num_calls = 0
        if opened_by and reasoning is not None:
            # the prompt itself opened the reasoning, so the model will not
            list(self._run("reasoning", lambda p: p.feed(opened_by), ""))
            self._held["reasoning"] = ""

    @property
    def plain(self) -> bool:
        return self._reasoning is None and self._tools is None

    def feed(self, text: str, token_ids: Sequence[int] = ()) -> Delta:
        delta = Delta()
        if self._reasoning is None:
            self._feed_tools(delta, text, token_ids)
        else:
            self._take_reasoning(delta, self._run("reasoning", lambda p: p.feed(text, token_ids), text))
        return delta

    def finish(self) -> Delta:
        delta = Delta()
        if self._reasoning is not None:
            self._take_reasoning(delta, self._run("reasoning", lambda p: p.finish(), ""))
        if self._tools is not None:
            self._take(delta, self._run("tool", lambda p: p.finish(), ""))
        return delta

    def _feed_tools(self, delta: Delta, text: str, token_ids: Sequence[int]) -> None:
        if self._tools is None:
            delta.content += text
        elif text:
            self._take(delta, self._run("tool", lambda p: p.feed(text, token_ids), text))

    def _take_reasoning(self, delta: Delta, events: Iterable[Event]) -> None:
        for event in events:
            if isinstance(event, Text):
                self._feed_tools(delta, event.text, ())
            else:
                self._take(delta, (event,))

    def _take(self, delta: Delta, events: Iterable[Event]) -> None:
        for event in events:
            match event:
                case Text(text):
                    delta.content += text
                case Reasoning(text):
                    delta.reasoning += text
                case ToolCallBegin(index) | ToolCallArguments(index) if self._is_surplus(index):
                    pass
                case ToolCallBegin(index, name, call_id):
                    self.num_calls += 1
                    delta.calls[index] = CallDelta(index, call_id or f"call_{uuid.uuid4().hex[:24]}", name)
                case ToolCallArguments(index, piece):
                    delta.calls.setdefault(index, CallDelta(index)).arguments += piece
                case ToolCallEnd():
                    pass

    def _is_surplus(self, index: int) -> bool:
        if self._first_call is None:
            self._first_call = index
        return self._single and index != self._first_call

    def _run(self, which: str, step: Any, text: str) -> list[Event]:
        """The parser's events; its failure turns it off and gives back as text what it held."""
        parser = self._reasoning if which == "reasoning" else self._tools
        self._held[which] += text
        try:
            events = list(step(parser))
        except Exception:
            log.warning("%s parser %s failed; the rest is plain content", which, type(parser).__name__, exc_info=True)
            held, self._held[which] = self._held[which], ""
            if which == "reasoning":
                self._reasoning = None
            else:
                self._tools = None
            return [Text(held)] if held else []
        if events:
            self._held[which] = ""
        return events


class NamedCall:
    """Parser of an output that a schema forces to be the arguments of one known function."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._begun = False

    def feed(self, text: str, token_ids: Sequence[int] = ()) -> Iterable[Event]:
        if not self._begun:
            self._begun = True
            yield ToolCallBegin(0, self._name)
        yield ToolCallArguments(0, text)

    def finish(self) -> Iterable[Event]:
        if self._begun:
            yield ToolCallEnd(0)


class RequiredCalls:
    """Parser of an output that a schema forces to be [{"name": ..., "parameters": {...}}, ...]."""

    _name = re.compile(r'"name"\s*:\s*("(?:[^"\\]|\\.)*")')

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = self._escaped = self._in_arguments = False
        self._head: list[str] = []
        self._index = -1

    def feed(self, text: str, token_ids: Sequence[int] = ()) -> Iterable[Event]:
        piece: list[str] = []
        for ch in text:
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif ch == "\\":
                    self._escaped = True
                elif ch == '"':
                    self._in_string = False
            elif ch == '"':
                self._in_string = True
            elif ch in "{[":
                self._depth += 1
                # [ is 1, the call 2, its parameters 3
                if self._depth == 3 and not self._in_arguments:
                    self._in_arguments = True
                    match = self._name.search("".join(self._head))
                    self._head.clear()
                    self._index += 1
                    yield ToolCallBegin(self._index, json.loads(match[1]) if match else "")
            elif ch in "}]":
                self._depth -= 1
                if self._in_arguments and self._depth == 2:
                    self._in_arguments = False
                    piece.append(ch)
                    yield ToolCallArguments(self._index, "".join(piece))
                    yield ToolCallEnd(self._index)
                    piece.clear()
                    continue
            (piece if self._in_arguments else self._head).append(ch)
        if piece:
            yield ToolCallArguments(self._index, "".join(piece))

    def finish(self) -> Iterable[Event]:
        return ()


def required_schema(tools: Sequence[Mapping[str, Any]], *, parallel: bool) -> dict[str, Any]:
    """JSON schema of one or more calls of these tools. Definitions move to the top, where references look for them."""
    calls: list[dict[str, Any]] = []
    definitions: dict[str, dict[str, Any]] = {}
    for tool in tools:
        function = tool["function"]
        parameters = dict(function.get("parameters") or {"type": "object"})
        for key in ("$defs", "definitions"):
            for name, value in parameters.pop(key, {}).items():
                if definitions.setdefault(key, {}).setdefault(name, value) != value:
                    raise ApiError(
                        f"two tools define {key}.{name} differently; rename one", param="tools", code="invalid_value"
                    )
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": function["name"]}, "parameters": parameters},
                "required": ["name", "parameters"],
                "additionalProperties": False,
            }
        )
    schema: dict[str, Any] = {"type": "array", "minItems": 1, "items": {"anyOf": calls}, **definitions}
    if not parallel:
        schema["maxItems"] = 1
    return schema
