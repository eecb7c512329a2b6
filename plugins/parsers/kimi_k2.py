"""Kimi K2: functions.name:0 as the call's id (its template needs it back), then JSON."""

from __future__ import annotations

from plugins.parsers.markers import MarkerParser, Read

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
