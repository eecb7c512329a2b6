"""Llama 4 and others: the whole output is a Python list of calls, [f(a=1), g(b="x")].

A call is told when its bracket closes: Python's values have no prefix in JSON that would be sure to stay right.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from typing import Any

from plugins.parsers.markers import MarkerParser, Read

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
        text.encode()
        return text
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
