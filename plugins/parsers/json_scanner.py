"""Reads JSON in pieces: finds where a value ends, and the first character that no JSON could have there.

Knows nothing of what the JSON means. Every character is looked at once.
"""

from __future__ import annotations

import enum
import re

MAX_DEPTH = 200

_SPACE = re.compile(r"[ \t\n\r]+")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')
_NUMBER = {
    # state -> character class -> state; a class is 0, digit 1-9, -, +, ., e
    "-": {"0": "0", "d": "i"},
    "0": {".": ".", "e": "e"},
    "i": {"0": "i", "d": "i", ".": ".", "e": "e"},
    ".": {"0": "f", "d": "f"},
    "f": {"0": "f", "d": "f", "e": "e"},
    "e": {"0": "x", "d": "x", "+": "s", "-": "s"},
    "s": {"0": "x", "d": "x"},
    "x": {"0": "x", "d": "x"},
}
_NUMBER_ENDS = {"0", "i", "f", "x"}
_CLASS = {**dict.fromkeys("123456789", "d"), **dict.fromkeys("eE", "e"), "0": "0", "+": "+", "-": "-", ".": "."}


class Stop(enum.Enum):
    MORE = 0
    """The text is used up."""
    KEY = 1
    """A key of the outermost object just ended."""
    VALUE = 2
    """A value of the outermost object begins at the next character."""
    VALUE_END = 3
    """It ended before the next character."""
    DONE = 4
    BAD = 5
    """The next character cannot stand here."""


class JsonScanner:
    """One value, which must be an object unless `any_value`."""

    def __init__(self) -> None:
        self._stack: list[str] = []
        self._state = "object"
        self._literal = ""
        self._hex = 0
        self._is_key = False

    def scan(self, text: str, at: int) -> tuple[int, Stop]:
        """Read on from text[at]. Returns where it stopped, and why."""
        size = len(text)
        while at < size:
            state = self._state
            if state == "string":
                if match := _PLAIN.match(text, at):
                    at = match.end()
                    continue
                char = text[at]
                if char == '"':
                    at += 1
                    self._state = "colon" if self._is_key else "after"
                    if len(self._stack) == 1:
                        return at, Stop.KEY if self._is_key else Stop.VALUE_END
                elif char == "\\":
                    at += 1
                    self._state = "escape"
                else:
                    return at, Stop.BAD
                continue
            char = text[at]
            if state == "escape":
                if char == "u":
                    self._state, self._hex = "hex", 4
                elif char in '"\\/bfnrt':
                    self._state = "string"
                else:
                    return at, Stop.BAD
                at += 1
                continue
            if state == "hex":
                if char not in "0123456789abcdefABCDEF":
                    return at, Stop.BAD
                at += 1
                self._hex -= 1
                if not self._hex:
                    self._state = "string"
                continue
            if state in _NUMBER:
                following = _NUMBER[state].get(_CLASS.get(char, ""))
                if following is not None:
                    self._state = following
                    at += 1
                    continue
                if state not in _NUMBER_ENDS:
                    return at, Stop.BAD
                self._state = "after"
                if len(self._stack) == 1:
                    return at, Stop.VALUE_END
                continue
            if state == "literal":
                if char != self._literal[0]:
                    return at, Stop.BAD
                at += 1
                self._literal = self._literal[1:]
                if not self._literal:
                    self._state = "after"
                    if len(self._stack) == 1:
                        return at, Stop.VALUE_END
                continue
            if match := _SPACE.match(text, at):
                at = match.end()
                continue
            if state in ("value", "first_value") and len(self._stack) == 1 and self._literal != "announced":
                self._literal = "announced"
                return at, Stop.VALUE
            at, stop = self._structure(char, at)
            if stop is not None:
                return at, stop
        return at, Stop.MORE

    def _structure(self, char: str, at: int) -> tuple[int, Stop | None]:
        state = self._state
        if state == "object":
            if char != "{":
                return at, Stop.BAD
            self._open("}")
        elif state in ("value", "first_value"):
            if char == "]" and state == "first_value":
                return self._close(at + 1)
            if char in "{[":
                if len(self._stack) >= MAX_DEPTH:
                    return at, Stop.BAD
                self._open("}" if char == "{" else "]")
            elif char == '"':
                self._state, self._is_key = "string", False
            elif char == "-" or char in _CLASS and char not in "+.eE":
                self._state = "-" if char == "-" else "0" if char == "0" else "i"
            elif char in "tfn":
                self._state, self._literal = "literal", {"t": "rue", "f": "alse", "n": "ull"}[char]
            else:
                return at, Stop.BAD
        elif state in ("key", "first_key"):
            if char == "}" and state == "first_key":
                return self._close(at + 1)
            if char != '"':
                return at, Stop.BAD
            self._state, self._is_key = "string", True
        elif state == "colon":
            if char != ":":
                return at, Stop.BAD
            self._state, self._literal = "value", ""
        else:  # after a value
            if char == self._stack[-1]:
                return self._close(at + 1)
            if char != ",":
                return at, Stop.BAD
            self._state, self._literal = ("key" if self._stack[-1] == "}" else "value"), ""
        return at + 1, None

    def _open(self, closer: str) -> None:
        self._stack.append(closer)
        self._state = "first_key" if closer == "}" else "first_value"

    def _close(self, at: int) -> tuple[int, Stop | None]:
        self._stack.pop()
        self._state = "after"
        if not self._stack:
            return at, Stop.DONE
        return at, Stop.VALUE_END if len(self._stack) == 1 else None
