"""Kimi K2: functions.name:0 as the call's id (its template needs it back), then JSON."""

from __future__ import annotations

from plugins.parsers.markers import MarkerParser, Read
from plugins.parsers.strict import Format, Tools, functions, one_of, row, tag, text, triggered

SECTION_BEGIN, SECTION_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
CALL_BEGIN, CALL_END, ARGUMENTS = "<|tool_call_begin|>", "<|tool_call_end|>", "<|tool_call_argument_begin|>"


class KimiK2Parser(MarkerParser):
    def run(self) -> Read:
        while (yield from self.opener(SECTION_BEGIN)):
            while True:
                yield from self.spaces()
                marker = yield from self.literal(CALL_BEGIN, SECTION_END)
                if marker == SECTION_END:
                    self.drop()
                if marker != CALL_BEGIN or not (yield from self._call()):
                    break
                self.hold()
            self.release()

    def _call(self) -> Read:
        yield from self.spaces()
        call_id = yield from self.name()
        yield from self.spaces()
        name = call_id.removeprefix("functions.").rsplit(":", 1)[0]
        if not name or not (yield from self.literal(ARGUMENTS)):
            return False
        yield from self.spaces()
        if (yield from self.peek()) != "{":
            return False
        self.begin(name, call_id)
        if not (yield from self.arguments_object()):
            return False
        yield from self.closing(CALL_END)
        return True

    @staticmethod
    def strict_format(tools: Tools) -> Format:
        number = {"type": "regex", "pattern": "[0-9]{1,3}"}
        calls = [
            tag(CALL_BEGIN, row(text(f"functions.{name}:"), number, text(ARGUMENTS), arguments), CALL_END)
            for name, arguments in functions(tools)
        ]
        section = {"type": "plus", "content": one_of(calls)}
        return triggered([SECTION_BEGIN], [tag(SECTION_BEGIN, section, SECTION_END)])
