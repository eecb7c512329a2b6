"""gpt-oss (harmony): messages with a header that names a channel, and for a call its function.

    <|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>commentary to=functions.f<|message|>{...}<|call|>

Analysis is reasoning; what is addressed to a function is a call; every other message is content. Read by its markers:
the library of the format needs a vocabulary that it downloads.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

from plugins.parsers.markers import MAX_NAME, MarkerParser, Read
from plugins.parsers.strict import ANY_TEXT, Format, Tools, cannot, functions, one_of, optional, row, star, text

START, CHANNEL, MESSAGE, CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
END, CALL = "<|end|>", "<|call|>"
ENDS = (END, "<|return|>", CALL)
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_RECIPIENT = re.compile(r"\bto=([\w.:/-]+)")


class GptOssParser(MarkerParser):
    calls_as_text: ClassVar[bool] = False
    """Leave calls as they stand, for a parser of tool calls that comes after."""
    strict_from_start: ClassVar[bool] = True
    """What strict_format says begins where a message does, not within its text."""

    def run(self) -> Read:
        # the prompt ends with <|start|>assistant, so that the output may begin within a header
        self.hold()
        yield from self.spaces()
        marker = ""
        if (yield from self.literal("to=")):
            marker = yield from self._message("".join(self._held or ()))
        self.release()
        while True:
            if marker not in (START, CHANNEL):
                marker = yield from self.until((START, CHANNEL, MESSAGE, *ENDS), self.text)
            if marker is None:
                return
            if marker in (START, CHANNEL):
                marker = yield from self._message(marker)

    def _message(self, opening: str) -> Read:
        """Read a message after its first marker, or what stood in its place. -> the marker after it, or None at the end."""
        self._held = [opening]
        pieces = [opening]
        stop = yield from self.until((MESSAGE, START, *ENDS), pieces.append)
        if stop != MESSAGE:
            # no header: it is content, but for what opens the next one
            if stop == START and self._held:
                self._held.pop()
            self.release()
            return stop
        header = "".join(pieces)
        channel, recipient = _CHANNEL.search(header), _RECIPIENT.search(header)
        name = recipient[1].removeprefix("functions.") if recipient else ""
        if 0 < len(name) <= MAX_NAME:
            if self.calls_as_text:
                self.release()
                stop = yield from self._body(self.text)
                self.text(stop if stop in ENDS else "")
                return stop
            if (yield from self._call(name)):
                return ""
            self.release()
            return (yield from self._body(self.text))
        self.drop()
        reasoning = channel is not None and channel[1] == "analysis"
        return (yield from self._body(self.reasoning if reasoning else self.text))

    def _body(self, sink: object) -> Read:
        return (yield from self.until((START, CHANNEL, *ENDS), sink))

    def _call(self, name: str) -> Read:
        """Read the arguments. False: there are none, and what was read is still held or told."""
        yield from self.spaces()
        if (yield from self.literal(CALL)):
            self.call(name, "{}")
            return True
        if (yield from self.peek()) != "{":
            return False
        self.begin(name)
        if not (yield from self.arguments_object()):
            return False
        yield from self.closing(CALL)
        return True

    @staticmethod
    def strict_format(tools: Tools) -> Format:
        """Whole messages: text is free, unless a header addresses them to a function; then they are its arguments."""
        channels = one_of([text("commentary"), text("analysis")])
        json = row(text(CONSTRAIN), text("json"))
        hint = optional(one_of([row(text(" "), json), json, text(" json")]))
        said_freely = {**ANY_TEXT, "excludes": [END]}
        called = list(functions(tools))
        for name, _ in called:
            if not _RECIPIENT.fullmatch(f"to={name}") or len(name) > MAX_NAME:
                raise cannot(name, "a name that a header cannot hold")

        def message(after_text: Sequence[Format], after_call: Format) -> Format:
            # what is common to two beginnings stands once: a lexer takes the longest that fits
            behind, before = [row(text(MESSAGE), said_freely, *after_text)], []
            for name, arguments in called:
                to, said = text(f" to=functions.{name}"), row(hint, text(MESSAGE), arguments, after_call)
                behind.append(row(to, said))
                before.append(row(to, text(CHANNEL), channels, said))
            final = row(text("final"), text(MESSAGE), said_freely, *after_text)
            return one_of([row(text(CHANNEL), one_of([final, row(channels, one_of(behind))])), *before])

        earlier = row(message([text(END)], text(CALL)), text(START), text("assistant"))
        return row(star(earlier), message([], optional(text(CALL))))


class GptOssReasoning(GptOssParser):
    calls_as_text = True
