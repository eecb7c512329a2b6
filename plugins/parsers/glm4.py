"""GLM 4.5 and later: <tool_call>name<arg_key>key</arg_key><arg_value>value</arg_value></tool_call>."""

from __future__ import annotations

from plugins.parsers.markers import Read
from plugins.parsers.tagged import TaggedParser


class Glm4Parser(TaggedParser):
    def run(self) -> Read:
        while (yield from self.opener("<tool_call>")):
            yield from self.spaces()
            yield from self._call()
            self.release()

    def _call(self) -> Read:
        name = yield from self.name()
        yield from self.spaces()
        tag = yield from self.literal("<arg_key>", "</tool_call>")
        if not name or not tag:
            return
        self.begin_tagged(name)
        while tag == "<arg_key>":
            self.hold()
            key: list[str] = []
            found = yield from self.until(["</arg_key>"], key.append)
            yield from self.spaces()
            if not found or not (yield from self.literal("<arg_value>")):
                self.broken()
                return
            if not (yield from self.tagged_value("".join(key).strip(), "</arg_value>")):
                self.broken()
                return
            self.hold()
            yield from self.spaces()
            tag = yield from self.literal("<arg_key>", "</tool_call>")
        if tag:
            self.drop()
            self.end_tagged()
        else:
            self.broken()
