"""What `strict_format` of the parsers says: calls as the models write them fit, wrong arguments do not, and text is free."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.interfaces.parser import Text, ToolCallArguments, ToolCallBegin
from core.registry import Entry, load_target
from core.sampling_params import GuidedDecodingParams
from plugins import parsers

PAGE = Path(__file__).parents[2] / "docs" / "make_guided.py"
spec = importlib.util.spec_from_file_location("make_guided_for_strict", PAGE)
assert spec is not None and spec.loader is not None
make_guided = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_guided)

ENTRIES: dict[str, Entry] = {}
parsers.register_tool_parsers(
    lambda name, target, **info: ENTRIES.update(
        {name: Entry("tool_parser", name, target, "parsers", "backplane", "0", info)}
    )
)

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "strict": True,
            "parameters": {
                "type": "object",
                "properties": {"city": {"$ref": "#/$defs/city"}, "days": {"type": "integer"}},
                "required": ["city", "days"],
                "additionalProperties": False,
                "$defs": {"city": {"enum": ["Oslo", "Rome"]}},
            },
        },
    },
    {"type": "function", "function": {"name": "now"}},
]

Call = tuple[str, str]


def in_list(calls: list[Call]) -> str:
    return "[" + ", ".join(f'{{"name": "{n}", "arguments": {a}}}' for n, a in calls) + "]"


WRITTEN: dict[str, list[Callable[[list[Call]], str]]] = {
    "hermes": [
        lambda calls: "\n".join(f'<tool_call>\n{{"name": "{n}", "arguments": {a}}}\n</tool_call>' for n, a in calls)
    ],
    "granite": [lambda calls: "<|tool_call|>" + in_list(calls), lambda calls: "<tool_call>" + in_list(calls)],
    "mistral": [
        lambda calls: "[TOOL_CALLS]" + in_list(calls),
        lambda calls: "".join(f"[TOOL_CALLS]{n}[ARGS]{a}" for n, a in calls),
    ],
    "llama3_json": [lambda calls: "; ".join(f'{{"name": "{n}", "parameters": {a}}}' for n, a in calls)],
    "kimi_k2": [
        lambda calls: (
            "<|tool_calls_section_begin|>"
            + "".join(
                f"<|tool_call_begin|>functions.{n}:{i}<|tool_call_argument_begin|>{a}<|tool_call_end|>"
                for i, (n, a) in enumerate(calls)
            )
            + "<|tool_calls_section_end|>"
        )
    ],
    "deepseek_v3": [
        lambda calls: (
            "<｜tool▁calls▁begin｜>"
            + "".join(f"<｜tool▁call▁begin｜>{n}<｜tool▁sep｜>{a}<｜tool▁call▁end｜>" for n, a in calls)
            + "<｜tool▁calls▁end｜>"
        ),
        lambda calls: (
            "<｜tool▁calls▁begin｜>"
            + "".join(
                f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{n}\n```json\n{a}\n```<｜tool▁call▁end｜>"
                for n, a in calls
            )
            + "<｜tool▁calls▁end｜>"
        ),
    ],
}

GOOD = [("weather", '{"city": "Oslo", "days": 3}'), ("now", '{"zone": [1, {"a": null}]}')]
BAD = [
    ("weather", '{"city": "Paris", "days": 3}'),
    ("weather", '{"city": "Oslo", "days": "3"}'),
    ("weather", '{"city": "Oslo"}'),
    ("weather", '{"city": "Oslo", "days": 3, "more": 1}'),
    ("weather", "[]"),
    ("now", "[]"),
    ("then", "{}"),
]


@pytest.fixture(scope="module", params=["llguidance", "xgrammar"])
def backend(request: pytest.FixtureRequest) -> Any:
    made = make_guided.backend(request.param)
    yield made
    getattr(made, "close", lambda: None)()


def grammar(backend: Any, name: str) -> Any:
    strict_format = load_target(ENTRIES[name]).strict_format
    params = GuidedDecodingParams(structural_tag={"format": strict_format(TOOLS)})
    assert backend.unsupported(params) == []
    return backend.compile(params)


def read(name: str, text: str) -> tuple[str, list[tuple[str, Any]]]:
    """-> content, calls"""
    parser = load_target(ENTRIES[name])(TOOLS)
    events = [*parser.feed(text), *parser.finish()]
    names = {e.index: e.name for e in events if isinstance(e, ToolCallBegin)}
    arguments = {i: "".join(e.json for e in events if isinstance(e, ToolCallArguments) and e.index == i) for i in names}
    content = "".join(e.text for e in events if isinstance(e, Text))
    return content.strip(), [(names[i], json.loads(arguments[i])) for i in names]


def test_every_format_whose_arguments_are_json_can_be_strict():
    assert {n for n, e in ENTRIES.items() if hasattr(load_target(e), "strict_format")} == set(WRITTEN)


@pytest.mark.parametrize("name", WRITTEN)
def test_calls_that_fit_are_taken_and_read_and_others_are_not(backend, name):
    made = grammar(backend, name)
    for free in ("", "No call here.\n", "1 < 2 [a] {b}"):
        assert make_guided.takes(made, free), free
    for write in WRITTEN[name]:
        for calls in ([GOOD[0]], [GOOD[1]], GOOD):
            text = write(calls)
            assert make_guided.takes(made, text), text
            assert read(name, text) == ("", [(n, json.loads(a)) for n, a in calls])
            if name != "llama3_json":  # there the whole output is the call
                assert make_guided.takes(made, "Let me see. " + text)
                assert read(name, "Let me see. " + text)[1] == [(n, json.loads(a)) for n, a in calls]
        for call in BAD:
            for calls in ([call], [GOOD[0], call]):
                assert not make_guided.takes(made, write(calls)), write(calls)
