"""Qwen 3 Coder: <tool_call><function=name><parameter=key>value</parameter></function></tool_call>."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plugins.parsers.markers import Read
from plugins.parsers.strict import Format, Tools, one_of, optional, parameters, row, star, tag, text, triggered
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

    @staticmethod
    def strict_format(tools: Tools) -> Format:
        calls = one_of([_strict_call(t) for t in tools])
        wrapped = row(text("\n<function="), calls, text("</function>\n"))
        bare = tag("<function=", calls, "</function>")
        return triggered(["<tool_call>", "<function="], [tag("<tool_call>", wrapped, "</tool_call>"), bare])


def _strict_call(tool: Mapping[str, Any]) -> Format:
    """What stands between <function= and </function>."""
    found = parameters(tool)
    head = text(f"{tool['function']['name']}>\n")
    if found is None:
        return row(head, star(row(tag("<parameter=", {"type": "any_text"}, "</parameter>"), text("\n"))))
    elements = [head]
    for key, value, required in found:
        # the parser takes the newlines beside a value for the tags'
        ends = "</parameter>" if value["type"] == "any_text" else "\n</parameter>"
        element = row(tag(f"<parameter={key}>\n", value, ends), text("\n"))
        elements.append(element if required else optional(element))
    return row(*elements)
