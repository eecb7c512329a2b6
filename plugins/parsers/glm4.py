"""GLM 4.5 and later: <tool_call>name<arg_key>key</arg_key><arg_value>value</arg_value></tool_call>."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plugins.parsers.markers import Read
from plugins.parsers.strict import Format, Tools, one_of, optional, parameters, row, star, tag, text, triggered
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

    @staticmethod
    def strict_format(tools: Tools) -> Format:
        calls = one_of([_strict_call(t) for t in tools])
        return triggered(["<tool_call>"], [tag("<tool_call>", calls, "</tool_call>")])


def _strict_call(tool: Mapping[str, Any]) -> Format:
    """What stands between <tool_call> and </tool_call>."""
    found = parameters(tool)
    head = text(f"{tool['function']['name']}\n")
    if found is None:
        free = [tag(f"<arg_{n}>", {"type": "any_text"}, f"</arg_{n}>") for n in ("key", "value")]
        return row(head, star(row(free[0], text("\n"), free[1], text("\n"))))
    elements = [head]
    for key, value, required in found:
        named = (text("<arg_key>"), text(key), text("</arg_key>"), text("\n"))
        element = row(*named, tag("<arg_value>", value, "</arg_value>"), text("\n"))
        elements.append(element if required else optional(element))
    return row(*elements)
