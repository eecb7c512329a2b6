"""Mistral: [TOOL_CALLS][{"name": ..., "arguments": {...}}, ...], and since tokenizer 11
[TOOL_CALLS]name[ARGS]{...}, with [CALL_ID]id before [ARGS] in some."""

from __future__ import annotations

from plugins.parsers.markers import MarkerParser, Read
from plugins.parsers.strict import Format, Tools, call_list, functions, row, tag, text, triggered


class MistralParser(MarkerParser):
    def run(self) -> Read:
        while (yield from self.opener("[TOOL_CALLS]")):
            yield from self.spaces()
            if (yield from self.peek()) == "[":
                yield from self.call_list()
            else:
                yield from self._named()
            self.release()

    def _named(self) -> Read:
        name = yield from self.name()
        call_id = None
        separator = yield from self.literal("[CALL_ID]", "[ARGS]")
        if separator == "[CALL_ID]":
            call_id = (yield from self.name()) or None
            yield from self.literal("[ARGS]")
        if name and (yield from self.peek()) == "{":
            self.begin(name, call_id)
            yield from self.arguments_object()

    @staticmethod
    def strict_format(tools: Tools) -> Format:
        marker = "[TOOL_CALLS]"
        named = [tag(marker, row(text(n), text("[ARGS]"), arguments), "") for n, arguments in functions(tools)]
        return triggered([marker], [call_list(marker, tools), *named])
