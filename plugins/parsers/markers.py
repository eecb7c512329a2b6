"""The base of all parsers here: a format is one generator, which reads text that comes in pieces.

A format's `run` uses the reading methods below with `yield from`; they wait for text where they must. What was read
since `hold` can be given back as content with `release`, so that what only looks like a call is never lost. Text is
read once and never again: a parser is linear, whatever the pieces.

A call whose name was told and whose arguments break off stays as it was told, without a ToolCallEnd; what follows is
content. (Told deltas cannot be taken back.) A call that breaks off before comes out as content in whole.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Generator, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from core.interfaces.parser import Event, Reasoning, Text, ToolCallArguments, ToolCallBegin, ToolCallEnd
from plugins.parsers.json_scanner import JsonScanner, Stop

log = logging.getLogger("backplane.parsers")

Read = Generator[None, None, Any]
"""A reading method's type: it is resumed when there is more text; its result is what it returns."""

MAX_NAME = 256
_NAME = re.compile(r"[\w.:/-]+")
_SPACE = re.compile(r"\s+")


class MarkerParser:
    """See core.interfaces.parser.OutputParser. A format overrides `run`."""

    def __init__(self, tools: Sequence[Mapping[str, Any]] = ()) -> None:
        self.tools: dict[str, Mapping[str, Any]] = {}
        for tool in tools:
            function = tool.get("function", tool)
            self.tools[str(function.get("name"))] = function.get("parameters") or {}
        self.ended = False
        self.num_calls = 0
        self._text, self._at = "", 0
        self._held: list[str] | None = None
        self._events: list[Event] = []
        self._reader = self._whole()

    def run(self) -> Read:
        raise NotImplementedError

    def feed(self, text: str, token_ids: Sequence[int] = ()) -> Iterable[Event]:
        if not text:
            return ()
        self._text, self._at = self._text[self._at :] + text, 0
        return self._resume()

    def finish(self) -> Iterable[Event]:
        self.ended = True
        return self._resume()

    def _resume(self) -> list[Event]:
        next(self._reader, None)
        events, self._events = self._events, []
        return events

    def _whole(self) -> Read:
        yield from self.run()
        # a format that is done leaves the rest as content
        self.release()
        while True:
            self.text(self._take(len(self._text)))
            if self.ended:
                return
            yield

    # ---- events

    def text(self, text: str) -> None:
        self._put(Text, text)

    def reasoning(self, text: str) -> None:
        self._put(Reasoning, text)

    def _put(self, kind: type[Text] | type[Reasoning], text: str) -> None:
        if text:
            self._events.append(kind(text))

    def begin(self, name: str, call_id: str | None = None) -> None:
        """A call is sure: what was held is it, and is not content any more."""
        self._held = None
        self._events.append(ToolCallBegin(self.num_calls, name, call_id))

    def arguments(self, piece: str) -> None:
        if piece:
            self._events.append(ToolCallArguments(self.num_calls, piece))

    def end(self) -> None:
        self._events.append(ToolCallEnd(self.num_calls))
        self.num_calls += 1

    def broken(self) -> None:
        """The call that was told breaks off."""
        log.warning("a tool call's arguments broke off; the rest is content")
        self.num_calls += 1

    def call(self, name: str, arguments: str, call_id: str | None = None) -> None:
        self.begin(name, call_id)
        self.arguments(arguments)
        self.end()

    # ---- holding back

    def hold(self) -> None:
        if self._held is None:
            self._held = []

    def release(self) -> None:
        """What was read since `hold` was no call: it is content."""
        if self._held is not None:
            held, self._held = self._held, None
            self.text("".join(held))

    def drop(self) -> None:
        self._held = None

    def _take(self, end: int) -> str:
        piece = self._text[self._at : end]
        self._at = end
        if self._held is not None and piece:
            self._held.append(piece)
        return piece

    # ---- reading

    def peek(self) -> Read:
        """The next character, or "" at the end."""
        while self._at >= len(self._text) and not self.ended:
            yield
        return self._text[self._at : self._at + 1]

    def spaces(self) -> Read:
        """Read white space."""
        while (yield from self.peek()):
            match = _SPACE.match(self._text, self._at)
            if match is None:
                return
            self._take(match.end())

    def literal(self, *options: str) -> Read:
        """Read one of these and return it; "" and nothing read if none is next. None is the beginning of another."""
        while True:
            left = len(self._text) - self._at
            for option in options:
                if self._text.startswith(option, self._at):
                    self._take(self._at + len(option))
                    return option
            tail = self._text[self._at :] if left < max(map(len, options)) else None
            if self.ended or tail is None or not any(o.startswith(tail) for o in options):
                return ""
            yield

    def name(self) -> Read:
        """Read a function's name; "" if there is none or it is too long."""
        pieces: list[str] = []
        size = 0
        while (yield from self.peek()):
            match = _NAME.match(self._text, self._at)
            if match is None:
                break
            pieces.append(self._take(match.end()))
            size += len(pieces[-1])
            if size > MAX_NAME:
                return ""
        return "".join(pieces)

    def opener(self, *markers: str) -> Read:
        """Read content up to a marker that opens calls. The marker is held, and white space alone before it; white
        space alone after the last call is dropped.

        Returns: the marker, or None at the end of the output.
        """
        self.drop()
        return (yield from self.until(markers, self.text, opening=True))

    def until(self, markers: Sequence[str], sink: Any, *, opening: bool = False) -> Read:
        """Read up to the first marker and over it; what lies before goes to `sink` as it comes.

        Returns: the marker, or None at the end of the output.
        """
        lazy_space = opening
        pattern = _any_of(tuple(markers))
        space: list[str] = []
        while True:
            if lazy_space and (match := _SPACE.match(self._text, self._at)):
                space.append(self._take(match.end()))
            match = pattern.search(self._text, self._at)
            end = match.start() if match else len(self._text)
            if match is None and not self.ended:
                end -= _partial(self._text, self._at, tuple(markers))
            if end > self._at:
                lazy_space = False
                sink("".join(space) + self._take(end))
                space.clear()
            if match is not None:
                self._take(match.end())
                if opening:
                    self._held = [*space, match[0]]
                return match[0]
            if self.ended:
                if space and not (opening and self.num_calls):
                    sink("".join(space))
                return None
            yield

    def arguments_object(self) -> Read:
        """Stream a JSON object as the arguments of the call that was begun. True: it is complete, and told so."""
        scanner = JsonScanner()
        while (yield from self.peek()):
            end, stop = scanner.scan(self._text, self._at)
            self.arguments(self._take(end))
            if stop is Stop.DONE:
                self.end()
                return True
            if stop is Stop.BAD:
                break
        self.broken()
        return False

    def call_object(self, *, known_only: bool = False) -> Read:
        """Read {"name": ..., "arguments" or "parameters": {...}} and stream it as a call.

        known_only: other names than the tools' are content (for formats without markers).
        Returns: whether it was a call, whole. If not, what was not told as a call is still held.
        """
        scanner = JsonScanner()
        key, name, told, done = "", "", False, False
        arguments: str | None = None
        piece: list[str] = []
        streaming = in_value = False
        while (yield from self.peek()):
            end, stop = scanner.scan(self._text, self._at)
            if streaming:
                self.arguments(self._take(end))
            else:
                piece.append(self._take(end))
            if stop is Stop.BAD:
                break
            if stop is Stop.KEY:
                key = _loads("".join(piece).strip().lstrip("{,").strip())
                piece.clear()
            elif stop is Stop.VALUE:
                piece.clear()
                in_value = True
                opening = self._text[self._at]
                if key in ("arguments", "parameters") and name and opening == "{" and not told:
                    self.begin(name)
                    told = streaming = True
            elif stop is Stop.VALUE_END and in_value:
                in_value = False
                value, streaming, was = "".join(piece), False, streaming
                piece.clear()
                if was:
                    self.end()
                    done = True
                    self.hold()
                elif key == "name" and not told:
                    found = _loads(value)
                    name = found if isinstance(found, str) and 0 < len(found) <= MAX_NAME else ""
                    if not name or (known_only and self.tools and name not in self.tools):
                        return False
                elif key in ("arguments", "parameters") and not told:
                    arguments = _object(value)
                    if arguments is None:
                        return False
            elif stop is Stop.DONE:
                if told:
                    self.drop()
                    return True
                if not name or (arguments is None and known_only):
                    return False
                self.call(name, arguments or "{}")
                return True
        if streaming:
            self.broken()
        # the arguments are whole, only the object around them is not
        return done

    def closing(self, *literals: str) -> Read:
        """Read what ends a call, in order, with white space between; what is not there may be missing.

        After a call is told its end decides nothing, and text that stands in its place is content.
        """
        for text in literals:
            self.hold()
            yield from self.spaces()
            if (yield from self.literal(text)):
                self.drop()

    def call_list(self) -> Read:
        """Read [call, call, ...], a bracket first. Returns whether all of it was calls."""
        if not (yield from self.literal("[")):
            return False
        while True:
            yield from self.spaces()
            if (yield from self.literal("]")):
                self.drop()
                return True
            if not (yield from self.call_object()):
                return False
            self.hold()
            yield from self.spaces()
            yield from self.literal(",")


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _object(value: str) -> str | None:
    """The arguments as the text of a JSON object; some models write them as a string, or null for none."""
    found = _loads(value)
    if isinstance(found, str):
        value, found = found, _loads(found)
    if found is None:
        return "{}" if value == "null" else None
    return value if isinstance(found, dict) else None


@cache
def _any_of(markers: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(m) for m in sorted(markers, key=len, reverse=True)))


def _partial(text: str, start: int, markers: tuple[str, ...]) -> int:
    """Characters at the end of text[start:] that may be the beginning of a marker."""
    for length in range(min(max(map(len, markers)) - 1, len(text) - start), 0, -1):
        tail = text[-length:]
        if any(m.startswith(tail) for m in markers):
            return length
    return 0
