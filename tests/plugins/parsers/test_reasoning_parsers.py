"""Reasoning parsers, with every transcript cut everywhere."""

from __future__ import annotations

import pytest

from core.interfaces.parser import Event, Reasoning, Text, ToolCallArguments, ToolCallBegin, ToolCallEnd
from plugins.parsers import gpt_oss, reasoning

CASES = [
    ("Qwen3Reasoning", "<think>\nWell, 1 < 2.\n</think>\n\nYes.", "Well, 1 < 2.\n", "Yes."),
    ("Qwen3Reasoning", "Yes </think> <think> no", "", "Yes </think> <think> no"),
    ("Qwen3Reasoning", "<thin", "", "<thin"),
    ("Qwen3Reasoning", "<think>never ends </thin", "never ends </thin", ""),
    ("Qwen3Reasoning", "<think>a</think>b<think>c</think>", "a", "b<think>c</think>"),
    ("DeepSeekR1Reasoning", "thinking</think>\nanswer", "thinking", "answer"),
    ("DeepSeekR1Reasoning", "<think>thinking</think>answer", "thinking", "answer"),
    ("DeepSeekR1Reasoning", "cut", "cut", ""),
    ("MagistralReasoning", "[THINK]a [ b[/THINK]c", "a [ b", "c"),
    ("GraniteReasoning", "Here is my thought process: hm. Here's my response: ok", "hm. ", "ok"),
    (
        "GptOssReasoning",
        "<|channel|>analysis<|message|>a <b<|end|><|start|>assistant<|channel|>final<|message|>c<|return|>",
        "a <b",
        "c",
    ),
    ("GptOssReasoning", "<|channel|>analysis<|message|>never ends <|en", "never ends <|en", ""),
    (
        "GptOssReasoning",
        '<|channel|>analysis<|message|>a<|end|><|start|>assistant to=functions.f<|channel|>commentary<|message|>{"x": 1}<|call|>',
        "a",
        '<|start|>assistant to=functions.f<|channel|>commentary<|message|>{"x": 1}<|call|>',
    ),
    (
        "GptOssReasoning",
        ' to=functions.f<|channel|>commentary<|message|>{"x": 1}<|call|>',
        "",
        ' to=functions.f<|channel|>commentary<|message|>{"x": 1}<|call|>',
    ),
    ("GraniteReasoning", "Here is my answer", "", "Here is my answer"),
]


@pytest.mark.parametrize(("name", "transcript", "wanted", "content"), CASES)
def test_reasoning_at_every_cut(name: str, transcript: str, wanted: str, content: str) -> None:
    cuts = [[transcript[:i], transcript[i:]] for i in range(len(transcript))]
    for pieces in [[transcript], list(transcript), *cuts]:
        parser = getattr(gpt_oss if name.startswith("Gpt") else reasoning, name)()
        events = [e for p in pieces for e in parser.feed(p)] + list(parser.finish())
        assert "".join(e.text for e in events if isinstance(e, Reasoning)) == wanted
        assert "".join(e.text for e in events if isinstance(e, Text)) == content


def test_reasoning_leaves_calls_to_the_next_parser() -> None:
    """As the server chains them: what the first leaves as text, the second reads."""
    transcript = (
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary<|message|>On it.<|end|>"
        '<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"x": 1}<|call|>'
    )
    for size in (1, 3, 7, len(transcript)):
        first, second = gpt_oss.GptOssReasoning(), gpt_oss.GptOssParser()
        events: list[Event] = []
        pieces = [transcript[i : i + size] for i in range(0, len(transcript), size)]
        for piece in [*pieces, None]:
            for event in first.finish() if piece is None else first.feed(piece):
                events += second.feed(event.text) if isinstance(event, Text) else [event]
        events += second.finish()
        assert "".join(e.text for e in events if isinstance(e, Reasoning)) == "Hm."
        assert "".join(e.text for e in events if isinstance(e, Text)) == "On it."
        assert [e.name for e in events if isinstance(e, ToolCallBegin)] == ["f"]
        assert "".join(e.json for e in events if isinstance(e, ToolCallArguments)) == '{"x": 1}'
        assert isinstance(events[-1], ToolCallEnd)
