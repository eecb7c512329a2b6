"""Arguments as tagged text, <key>value</key>, whose types only the tool's schema knows -> JSON, as it comes."""

from __future__ import annotations

import json
from typing import Any

from plugins.parsers.markers import MarkerParser, Read


class TaggedParser(MarkerParser):
    """Base of the formats whose values are plain text. A value that the schema calls a string streams."""

    def begin_tagged(self, name: str) -> None:
        self.begin(name)
        self._schema: dict[str, Any] = dict(self.tools.get(name, {}).get("properties") or {})
        self._separator = "{"

    def end_tagged(self) -> None:
        self.arguments("{}" if self._separator == "{" else "}")
        self.end()

    def tagged_value(self, key: str, closer: str, *, own_line: bool = False) -> Read:
        """Read a value up to its closing tag. False: the output ended before.

        own_line: the first and the last newline belong to the tags.
        """
        head = f"{self._separator}{json.dumps(key, ensure_ascii=False)}: "
        schema = self._schema.get(key)
        if isinstance(schema, dict) and schema.get("type") == "string":
            self.drop()
            self.arguments(f'{head}"')
            value = _StringValue(self, own_line)
            if (yield from self.until([closer], value.add)) is None:
                value.close()
                return False
            self.arguments('"')
        else:
            pieces: list[str] = []
            if (yield from self.until([closer], pieces.append)) is None:
                return False
            text = "".join(pieces)
            if own_line:
                text = text.removeprefix("\n").removesuffix("\n")
            self.drop()
            self.arguments(head + _as_json(text, schema))
        self._separator = ", "
        return True


class _StringValue:
    """Text that is told as the inside of a JSON string. The newline before the closing tag is held back."""

    def __init__(self, parser: MarkerParser, own_line: bool) -> None:
        self._parser, self._own_line = parser, own_line
        self._first, self._newline = own_line, ""

    def add(self, text: str) -> None:
        if self._first:
            self._first = False
            text = text.removeprefix("\n")
        if not text:
            return
        text = self._newline + text
        self._newline = ""
        if self._own_line and text.endswith("\n"):
            text, self._newline = text[:-1], "\n"
        self._parser.arguments(json.dumps(text, ensure_ascii=False)[1:-1])

    def close(self) -> None:
        self._parser.arguments("\\n" if self._newline else "")


def _as_json(text: str, schema: Any) -> str:
    kinds = schema.get("type") if isinstance(schema, dict) else None
    kinds = kinds if isinstance(kinds, list) else [kinds]
    plain = text.strip()
    if kinds == ["boolean"] or (kinds == ["null"]):
        plain = {"True": "true", "False": "false", "None": "null"}.get(plain, plain)
    try:
        value = json.loads(plain, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)
    if isinstance(value, str) and "string" in kinds:
        return json.dumps(text, ensure_ascii=False)
    return plain


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
