"""Formats of calls whose arguments follow their tool's schema, as structural tags: what `strict_format` of a parser returns.

A structural tag leaves text free until a trigger, and holds what follows to the tag. Whatever a parser reads leniently
(white space, missing ends) is written here as the model's own template writes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Format = dict[str, Any]
Tools = Sequence[Mapping[str, Any]]


def functions(tools: Tools) -> Iterator[tuple[str, Format]]:
    """Names and the formats of their arguments."""
    for tool in tools:
        function = tool.get("function", tool)
        schema = function.get("parameters")
        yield (
            str(function["name"]),
            {"type": "json_schema", "json_schema": {"type": "object"} if schema is None else schema},
        )


def text(value: str) -> Format:
    return {"type": "const_string", "value": value}


def row(*elements: Format) -> Format:
    return {"type": "sequence", "elements": list(elements)}


def one_of(elements: Sequence[Format]) -> Format:
    return elements[0] if len(elements) == 1 else {"type": "or", "elements": list(elements)}


def tag(begin: str, content: Format, end: str) -> Format:
    return {"type": "tag", "begin": begin, "content": content, "end": end}


def triggered(triggers: Sequence[str], tags: Sequence[Format]) -> Format:
    """Free text in which these tags may stand; each begins with one of the triggers."""
    return {"type": "triggered_tags", "triggers": list(triggers), "tags": list(tags)}


def call_object(name: str, arguments: Format, key: str = "arguments") -> Format:
    """{"name": ..., "arguments": {...}}"""
    return row(text(f'{{"name": {json.dumps(name, ensure_ascii=False)}, "{key}": '), arguments, text("}"))


def call_list(begin: str, tools: Tools) -> Format:
    """A tag: `begin`[call, call, ...]"""
    begins = [(f'{{"name": {json.dumps(n, ensure_ascii=False)}, "arguments": ', a) for n, a in functions(tools)]
    calls = [tag(begin, arguments, "}") for begin, arguments in begins]
    many = {"type": "tags_with_separator", "tags": calls, "separator": ", ", "at_least_one": True}
    return tag(begin, row(text("["), many), "]")
