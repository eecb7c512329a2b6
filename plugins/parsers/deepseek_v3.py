"""DeepSeek V3 (calls in fenced JSON, after their type) and V3.1 (the name, then bare JSON)."""

from __future__ import annotations

from plugins.parsers.markers import MarkerParser, Read
from plugins.parsers.strict import Format, Tools, functions, one_of, row, tag, text, triggered

CALLS_BEGIN, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL_BEGIN, CALL_END, SEPARATOR = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"


class DeepSeekV3Parser(MarkerParser):
    def run(self) -> Read:
        while (yield from self.opener(CALLS_BEGIN)):
            while True:
                yield from self.spaces()
                marker = yield from self.literal(CALL_BEGIN, CALLS_END)
                if marker == CALLS_END:
                    self.drop()
                if marker != CALL_BEGIN or not (yield from self._call()):
                    break
                self.hold()
            self.release()

    def _call(self) -> Read:
        name = yield from self.name()
        if not name or not (yield from self.literal(SEPARATOR)):
            return False
        fenced = name == "function" and (yield from self.peek()) != "{"
        if fenced:
            name = yield from self.name()
            yield from self.spaces()
            if not (yield from self.literal("```json")):
                return False
        yield from self.spaces()
        if not name or (yield from self.peek()) != "{":
            return False
        self.begin(name)
        if not (yield from self.arguments_object()):
            return False
        yield from self.closing(*(["```"] if fenced else []), CALL_END)
        return True

    @staticmethod
    def strict_format(tools: Tools) -> Format:
        calls = []
        for name, arguments in functions(tools):
            calls.append(tag(CALL_BEGIN, row(text(name), text(SEPARATOR), arguments), CALL_END))
            fenced = row(text("function"), text(SEPARATOR), text(f"{name}\n```json\n"), arguments, text("\n```"))
            calls.append(tag(CALL_BEGIN, fenced, CALL_END))
        return triggered([CALLS_BEGIN], [tag(CALLS_BEGIN, {"type": "plus", "content": one_of(calls)}, CALLS_END)])
