"""gpt-oss (harmony): messages with a header that names a channel, and for a call its function.

    <|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>commentary to=functions.f<|message|>{...}<|call|>

Analysis is reasoning; what is addressed to a function is a call; every other message is content. Read by its markers:
the library of the format needs a vocabulary that it downloads.
"""

from __future__ import annotations

import re
from typing import ClassVar

from plugins.parsers.markers import MAX_NAME, MarkerParser, Read

START, CHANNEL, MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
ENDS = ("<|end|>", "<|return|>", "<|call|>")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_RECIPIENT = re.compile(r"\bto=([\w.:/-]+)")


class GptOssParser(MarkerParser):
    calls_as_text: ClassVar[bool] = False
    """Leave calls as they stand, for a parser of tool calls that comes after."""

    def run(self) -> Read:
        marker = ""
        while True:
            if marker not in (START, CHANNEL):
                marker = yield from self.until((START, CHANNEL, MESSAGE, *ENDS), self.text)
            if marker is None:
                return
            if marker in (START, CHANNEL):
                marker = yield from self._message(marker)

    def _message(self, opening: str) -> Read:
        """Read a message after its first marker. -> the marker after it, or None at the end."""
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
        if (yield from self.literal("<|call|>")):
            self.call(name, "{}")
            return True
        if (yield from self.peek()) != "{":
            return False
        self.begin(name)
        if not (yield from self.arguments_object()):
            return False
        yield from self.closing("<|call|>")
        return True


class GptOssReasoning(GptOssParser):
    calls_as_text = True
