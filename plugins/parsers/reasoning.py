"""Reasoning between two markers at the beginning of an output; what follows is content."""

from __future__ import annotations

from typing import ClassVar

from plugins.parsers.markers import MarkerParser, Read
from plugins.parsers.strict import ANY_TEXT, Format, one_of, optional, row, text


class ReasoningParser(MarkerParser):
    opens: ClassVar[tuple[str, ...]]
    closes: ClassVar[tuple[str, ...]]
    begins_inside: ClassVar[bool] = False
    """The prompt holds the opening marker, so the output begins with reasoning."""

    def run(self) -> Read:
        self.hold()
        yield from self.spaces()
        if not (yield from self.literal(*self.opens)) and not self.begins_inside:
            return
        yield from self.spaces()
        self.drop()
        if (yield from self.until(self.closes, self.reasoning)) is not None:
            # the blank line after the marker
            self.hold()
            yield from self.spaces()
            self.drop()

    @classmethod
    def strict_around(cls, content: Format, opened_by: str) -> Format:
        """Reasoning in free text between its markers, then `content`. opened_by: the marker that ends the prompt, if one does."""
        pairs = list(zip(cls.opens, cls.closes, strict=True))
        if opened_by or cls.begins_inside:
            return row(ANY_TEXT, text(dict(pairs).get(opened_by, cls.closes[0])), content)
        return row(optional(one_of([row(text(o), ANY_TEXT, text(c)) for o, c in pairs])), content)


class Qwen3Reasoning(ReasoningParser):
    opens, closes = ("<think>",), ("</think>",)


class DeepSeekR1Reasoning(Qwen3Reasoning):
    begins_inside = True


class MagistralReasoning(ReasoningParser):
    opens, closes = ("[THINK]", "<think>"), ("[/THINK]", "</think>")


class GraniteReasoning(ReasoningParser):
    opens = ("Here is my thought process:", "Here's my thought process:")
    closes = ("Here is my response:", "Here's my response:")
