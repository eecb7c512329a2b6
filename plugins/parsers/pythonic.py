"""Llama 4 and others: the whole output is a Python list of calls, [f(a=1), g(b="x")].

A call is told when its bracket closes: Python's values have no prefix in JSON that would be sure to stay right.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Mapping
from keyword import iskeyword
from typing import Any

from plugins.parsers.markers import MarkerParser, Read
from plugins.parsers.strict import ROOT, Format, Tools, cannot, one_of, optional, row, star, tag, text, triggered

MAX_CALL = 1 << 20
_SKIP = re.compile(r"""[^\\"'()\[\]{}]+""")
_NAME = re.compile(r"[A-Za-z_][\w.]*")


class PythonicParser(MarkerParser):
    def run(self) -> Read:
        self.hold()
        yield from self.spaces()
        yield from self.literal("<|python_start|>")
        yield from self.spaces()
        if not (yield from self.literal("[")):
            return
        while True:
            yield from self.spaces()
            name = yield from self.name()
            if not _NAME.fullmatch(name) or (self.tools and name not in self.tools):
                return
            if not (yield from self.literal("(")):
                return
            inside = yield from self._brackets()
            arguments = (
                None if inside is None else _arguments(inside, list(self.tools.get(name, {}).get("properties") or {}))
            )
            if arguments is None:
                return
            self.call(name, arguments)
            self.hold()
            yield from self.spaces()
            if not (yield from self.literal(",")):
                break
        if (yield from self.literal("]")):
            self.drop()
            yield from self.closing("<|python_end|>")

    @staticmethod
    def strict_format(tools: Tools) -> Format:
        calls = {str(t["function"]["name"]): row(*_keywords(t), text(")")) for t in tools}
        if odd := next((n for n in calls if not _NAME.fullmatch(n)), None):
            raise cannot(odd, "a name that Python cannot call")
        more = star(row(text(", "), one_of([row(text(f"{n}("), call) for n, call in calls.items()])))
        opened = [tag(f"[{n}(", row(call, more), "]") for n, call in calls.items()]
        return triggered([f"[{n}(" for n in calls], opened)

    def _brackets(self) -> Read:
        """Read up to the bracket that closes the call and return what is inside, or None."""
        pieces: list[str] = []
        stack = [")"]
        quote, escaped, size = "", False, 0
        while (yield from self.peek()):
            if match := _SKIP.match(self._text, self._at):
                pieces.append(self._take(match.end()))
                escaped = False
                size += len(pieces[-1])
                if size > MAX_CALL:
                    return None
                continue
            char = self._take(self._at + 1)
            if escaped:
                escaped = False
            elif char == "\\":
                escaped = True
            elif quote:
                quote = "" if char == quote else quote
            elif char in "\"'":
                quote = char
            elif char in "([{":
                stack.append({"(": ")", "[": "]", "{": "}"}[char])
                if len(stack) > 100:
                    return None
            elif char in ")]}":
                if char != stack.pop():
                    return None
                if not stack:
                    return "".join(pieces)
            pieces.append(char)
        return None


def _keywords(tool: Mapping[str, Any]) -> list[Format]:
    """`a=1, b="x"` in the schema's order. Values are written as JSON, which is read here as Python is."""
    name, schema = tool["function"]["name"], tool["function"].get("parameters") or {}
    if surplus := sorted(set(schema) - ROOT):
        raise cannot(name, f"parameters with {surplus[0]!r}")
    properties, required = schema.get("properties") or {}, set(schema.get("required") or ())
    if not properties and schema.get("additionalProperties") is not False:
        pair = row({"type": "regex", "pattern": "[A-Za-z_][A-Za-z0-9_]*="}, {"type": "json_schema", "json_schema": {}})
        return [optional(row(pair, star(row(text(", "), pair))))]
    if odd := next((k for k in properties if not (k.isidentifier() and k.isascii()) or iskeyword(k)), None):
        raise cannot(name, f"a parameter {odd!r}, which is no name in Python")
    shared = {k: schema[k] for k in ("$defs", "definitions") if k in schema}
    # from the last to the first: what may follow when something stands before, and when nothing does
    behind: list[Format] = []
    alone: list[Format] = []
    for key, value in reversed(properties.items()):
        held = {"type": "json_schema", "json_schema": {**shared, **value} if isinstance(value, dict) else value}
        here = row(text(f"{key}="), held, *behind)
        optionally = one_of([here, *alone]) if alone else optional(here)
        alone = [here if key in required else optionally]
        next_one = row(text(f", {key}="), held)
        behind = [next_one if key in required else optional(next_one), *behind]
    return alone


def _arguments(inside: str, names: list[str]) -> str | None:
    """`a=1, b="x"` as a JSON object, or None if that is no list of values."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "\d" in a string is only a warning in Python
            call = ast.parse(f"f({inside}\n)", mode="eval").body
        if not isinstance(call, ast.Call) or len(call.args) > len(names):
            return None
        found = {n: _value(a) for n, a in zip(names, call.args, strict=False)}
        for keyword in call.keywords:
            if keyword.arg is None or keyword.arg in found:
                return None
            found[keyword.arg] = _value(keyword.value)
        text = json.dumps(found, ensure_ascii=False, allow_nan=False)
        # JSON writes a character beyond 16 bits as two halves; half of one is an error
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=str() | int() | float() | None as value):
            return value
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(i) for i in items]
        case ast.Dict(keys=keys, values=values) if all(
            isinstance(k, ast.Constant) and isinstance(k.value, str) for k in keys
        ):
            return {k.value: _value(v) for k, v in zip(keys, values, strict=True) if isinstance(k, ast.Constant)}
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.Name(id=("true" | "false" | "null") as name):
            return {"true": True, "false": False, "null": None}[name]
    raise ValueError("not a plain value")
