"""Reasoning parsers, with every transcript cut everywhere."""

from __future__ import annotations

import pytest

from core.interfaces.parser import Reasoning, Text
from plugins.parsers import reasoning

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
    ("GraniteReasoning", "Here is my answer", "", "Here is my answer"),
]


@pytest.mark.parametrize(("name", "transcript", "wanted", "content"), CASES)
def test_reasoning_at_every_cut(name: str, transcript: str, wanted: str, content: str) -> None:
    cuts = [[transcript[:i], transcript[i:]] for i in range(len(transcript))]
    for pieces in [[transcript], list(transcript), *cuts]:
        parser = getattr(reasoning, name)()
        events = [e for p in pieces for e in parser.feed(p)] + list(parser.finish())
        assert "".join(e.text for e in events if isinstance(e, Reasoning)) == wanted
        assert "".join(e.text for e in events if isinstance(e, Text)) == content
