"""Qwen 3 Coder: <tool_call><function=name><parameter=key>value</parameter></function></tool_call>."""

from __future__ import annotations

from plugins.parsers.markers import Read
from plugins.parsers.tagged import TaggedParser


class Qwen3CoderParser(TaggedParser):
    def run(self) -> Read:
        while marker := (yield from self.opener("<tool_call>", "<function=")):
            if marker == "<tool_call>":
                yield from self.spaces()
                marker = yield from self.literal("<function=")
            # the model leaves <tool_call> out at times
            if marker and (yield from self._call()):
                yield from self.closing("</tool_call>")
            self.release()

    def _call(self) -> Read:
        name = yield from self.name()
        if not name or not (yield from self.literal(">")):
            return False
        self.begin_tagged(name)
        while True:
            self.hold()
            yield from self.spaces()
            tag = yield from self.literal("<parameter=", "</function>")
            if tag == "</function>":
                self.drop()
                self.end_tagged()
                return True
            key = (yield from self.name()) if tag else ""
            if not key or not (yield from self.literal(">")):
                self.broken()
                return False
            if not (yield from self.tagged_value(key, "</parameter>", own_line=True)):
                self.broken()
                return False
