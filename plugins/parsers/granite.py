"""Granite 3: <|tool_call|>[{"name": ..., "arguments": {...}}, ...]; some versions write <tool_call>."""

from __future__ import annotations

from plugins.parsers.markers import MarkerParser, Read
from plugins.parsers.strict import Format, Tools, call_list, triggered


class GraniteParser(MarkerParser):
    def run(self) -> Read:
        while (yield from self.opener("<|tool_call|>", "<tool_call>")):
            yield from self.spaces()
            yield from self.call_list()
            self.release()

    @staticmethod
    def strict_format(tools: Tools) -> Format:
        markers = ["<|tool_call|>", "<tool_call>"]
        return triggered(markers, [call_list(m, tools) for m in markers])
