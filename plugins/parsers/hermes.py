"""Hermes, Qwen 2.5 and Qwen 3: <tool_call>{"name": ..., "arguments": {...}}</tool_call>."""

from __future__ import annotations

from plugins.parsers.markers import MarkerParser, Read
from plugins.parsers.strict import Format, Tools, call_object, functions, one_of, row, tag, text, triggered


class HermesParser(MarkerParser):
    def run(self) -> Read:
        while (yield from self.opener("<tool_call>")):
            yield from self.spaces()
            if (yield from self.call_object()):
                yield from self.closing("</tool_call>")
            self.release()

    @staticmethod
    def strict_format(tools: Tools) -> Format:
        calls = one_of([call_object(*f) for f in functions(tools)])
        return triggered(["<tool_call>"], [tag("<tool_call>", row(text("\n"), calls, text("\n")), "</tool_call>")])
