"""Formats of calls whose arguments follow their tool's schema, as structural tags: what `strict_format` of a parser returns.

A structural tag leaves text free until a trigger, and holds what follows to the tag. Whatever a parser reads leniently
(white space, missing ends) is written here as the model's own template writes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from core.errors import RequestError

Format = dict[str, Any]
Tools = Sequence[Mapping[str, Any]]
ANY_TEXT: Format = {"type": "any_text"}


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


def optional(content: Format) -> Format:
    return {"type": "optional", "content": content}


def star(content: Format) -> Format:
    """Any number of times."""
    return {"type": "star", "content": content}


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


# ---- arguments as tagged text

_PLAIN = {"type", "description", "title", "default", "examples"}
ROOT = {
    "type",
    "properties",
    "required",
    "additionalProperties",
    "$defs",
    "definitions",
    "$schema",
    "description",
    "title",
}


def parameters(tool: Mapping[str, Any]) -> Iterator[tuple[str, Format, bool]] | None:
    """(name, format of its value, required) of each parameter, in order; None: any parameters.

    A value that the schema calls a string is plain text, any other is JSON: as plugins.parsers.tagged reads them.
    Raises RequestError for what such text cannot be held to.
    """
    function = tool.get("function", tool)
    schema = function.get("parameters") or {}
    if surplus := sorted(set(schema) - ROOT):
        raise cannot(function["name"], f"parameters with {surplus[0]!r}")
    if not schema.get("properties") and schema.get("additionalProperties") is not False:
        return None
    shared = {k: schema[k] for k in ("$defs", "definitions") if k in schema}
    required = set(schema.get("required") or ())
    properties = (schema.get("properties") or {}).items()
    return ((key, _value(function["name"], key, value, shared), key in required) for key, value in properties)


def _value(function: str, key: str, schema: Any, shared: Format) -> Format:
    if isinstance(schema, dict) and schema.get("type") == "string":
        if set(schema) <= _PLAIN:
            return ANY_TEXT
        choices = schema.get("enum", [schema.get("const")])
        if set(schema) <= {*_PLAIN, "enum", "const"} and all(isinstance(c, str) and c for c in choices):
            return one_of([text(c) for c in choices])
        raise cannot(function, f"{key}, a string with {sorted(set(schema) - _PLAIN)[0]!r}")
    if isinstance(schema, dict) and "string" in (schema.get("type") or ()):
        raise cannot(function, f"{key}, whose type is a string or something else")
    return {"type": "json_schema", "json_schema": {**shared, **schema} if isinstance(schema, dict) else schema}


def cannot(function: str, what: str) -> RequestError:
    return RequestError(
        f"the strict tool {function!r} has {what}, to which this model's format of calls cannot be held; simplify its schema, "
        "send tool_choice 'required', or leave strict out",
        param="tools",
    )
