"""Hermes, Qwen 2.5 and Qwen 3: <tool_call>{"name": ..., "arguments": {...}}</tool_call>."""

from __future__ import annotations

from plugins.parsers.markers import MarkerParser, Read


class HermesParser(MarkerParser):
    def run(self) -> Read:
        while (yield from self.opener("<tool_call>")):
            yield from self.spaces()
            if (yield from self.call_object()):
                yield from self.closing("</tool_call>")
            self.release()
