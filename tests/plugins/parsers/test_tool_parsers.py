"""Every transcript, cut in every way, must give the same events, and arguments that are JSON prefixes throughout."""

from __future__ import annotations

import json
import random
import re
import time
from typing import Any

import pytest

from core.interfaces.parser import Event, Reasoning, Text, ToolCallArguments, ToolCallBegin, ToolCallEnd
from core.registry import Entry, load_target
from plugins import parsers

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
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "days": {"type": "integer"},
                    "where": {"type": "object"},
                    "metric": {"type": "boolean"},
                },
            },
        },
    },
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
]
PARIS = '{"city": "Pa\\"ris}</tool_call>\\u00e9\\n", "days": 3, "where": {"a": [1, {"b": null}], "c": -1.5e+3}}'
SOFIA = '{"city": "София 😀"}'
NOW = ("now", {})

# format, transcript, content, calls; arguments of a call that breaks off are given as text
Call = tuple[str, Any]
DS = "<｜tool▁{}｜>".format
CASES: list[tuple[str, str, str, list[Call]]] = [
    ("hermes", f'<tool_call>\n{{"name": "weather", "arguments": {PARIS}}}\n</tool_call>', "", [("weather", PARIS)]),
    (
        "hermes",
        f'Let me see.\n<tool_call>{{"name":"weather","arguments":{SOFIA}}}</tool_call>\n'
        '<tool_call>\n{"arguments": {}, "name": "now"}\n</tool_call>\n',
        "Let me see.\n",
        [("weather", SOFIA), NOW],
    ),
    ("hermes", "a <tool_call> is <b>bold</b> <tool_cal", "a <tool_call> is <b>bold</b> <tool_cal", []),
    ("hermes", '<tool_call><tool_call>{"name": "now"}</tool_call>', "<tool_call>", [NOW]),
    ("hermes", '<tool_call>\n{"name": "now", "argum', '<tool_call>\n{"name": "now", "argum', []),
    (
        "hermes",
        '<tool_call>{"name": 3, "arguments": {}}</tool_call>!',
        '<tool_call>{"name": 3, "arguments": {}}</tool_call>!',
        [],
    ),
    ("hermes", '<tool_call>{"name": "weather", "arguments": {"city": "Pa', "", [("weather", '{"city": "Pa')]),
    (
        "hermes",
        '<tool_call>{"name": "weather", "arguments": {"a": 1,,}}</tool_call>',
        ",}}</tool_call>",
        [("weather", '{"a": 1,')],
    ),
    ("hermes", '<tool_call>{"name": "now", "arguments": {}</tool_call>done', "done", [NOW]),
    ("hermes", '<tool_call>{"name": "now", "arguments": {}}} </tool_call>', "} </tool_call>", [NOW]),
    (
        "hermes",
        '<tool_call>{"name": "weather", "arguments": "{\\"days\\": 2}"}</tool_call>',
        "",
        [("weather", {"days": 2})],
    ),
    (
        "hermes",
        '<tool_call>{"arguments": {"days": 2}, "id": 7, "name": "weather"}</tool_call>',
        "",
        [("weather", {"days": 2})],
    ),
    ("hermes", "plain 日本語 text < > <", "plain 日本語 text < > <", []),
    ("hermes", "", "", []),
    ("llama3_json", f'{{"name": "weather", "parameters": {PARIS}}}', "", [("weather", PARIS)]),
    (
        "llama3_json",
        f'<|python_tag|>{{"type": "function", "name": "weather", "parameters": {SOFIA}}}; {{"name": "now", "parameters": {{}}}}',
        "",
        [("weather", SOFIA), NOW],
    ),
    ("llama3_json", '{"name": "Bob", "parameters": 3}', '{"name": "Bob", "parameters": 3}', []),
    ("llama3_json", '{"name": "now"}', '{"name": "now"}', []),
    ("llama3_json", 'It is {"name": "now", "parameters": {}}', 'It is {"name": "now", "parameters": {}}', []),
    ("llama3_json", ' {"name": "now", "parameters": {}} and so', " and so", [NOW]),
    (
        "pythonic",
        '[weather(city="So)f\\"ia", days=-2, where={"a": [True, None, 1.5]}), now()]',
        "",
        [("weather", {"city": 'So)f"ia', "days": -2, "where": {"a": [True, None, 1.5]}}), NOW],
    ),
    ("pythonic", "<|python_start|>[now()]<|python_end|>", "", [NOW]),
    ("pythonic", '[weather("Rome", 2)]', "", [("weather", {"city": "Rome", "days": 2})]),
    ("pythonic", "[1, 2] is a list", "[1, 2] is a list", []),
    ("pythonic", '[now(), weather(city=open("x"))]', ', weather(city=open("x"))]', [NOW]),
    ("pythonic", "[weather(city='Ber", "[weather(city='Ber", []),
    (
        "mistral",
        f'[TOOL_CALLS][{{"name": "weather", "arguments": {PARIS}}}, {{"name": "now", "arguments": {{}}}}]',
        "",
        [("weather", PARIS), NOW],
    ),
    (
        "mistral",
        f"Ok.[TOOL_CALLS]weather[ARGS]{SOFIA}[TOOL_CALLS]now[CALL_ID]abc123def[ARGS]{{}}",
        "Ok.",
        [("weather", SOFIA), NOW],
    ),
    ("mistral", f"[TOOL_CALLS]weather{SOFIA}", "", [("weather", SOFIA)]),
    ("mistral", "[TOOL_CALLS] [TOOL_CAL", "[TOOL_CALLS] [TOOL_CAL", []),
    ("mistral", '[TOOL_CALLS][{"name": "now", "arguments": {}}, oops', ", oops", [NOW]),
    (
        "qwen3_coder",
        'On it.\n<tool_call>\n<function=weather>\n<parameter=city>\nNew\n"York"\n\n</parameter>\n<parameter=days>\n3\n</parameter>\n'
        '<parameter=where>\n{"a": 1}\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call>',
        "On it.\n",
        [("weather", {"city": 'New\n"York"\n', "days": 3, "where": {"a": 1}}), NOW],
    ),
    (
        "qwen3_coder",
        "<function=weather><parameter=city>a</p>b</parameter><parameter=metric>True</parameter></function>",
        "",
        [("weather", {"city": "a</p>b", "metric": True})],
    ),
    ("qwen3_coder", "<tool_call>\n<function=weather", "<tool_call>\n<function=weather", []),
    ("qwen3_coder", "<function=weather>\n<parameter=days>\n3", "\n<parameter=days>\n3", [("weather", "")]),
    ("qwen3_coder", "<function=weather><parameter=city>\nRo\nme", "", [("weather", '{"city": "Ro\\nme')]),
    (
        "glm4",
        "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Rome 3</arg_value>\n<arg_key>days</arg_key>\n"
        "<arg_value>3</arg_value>\n</tool_call>\n<tool_call>now\n</tool_call>",
        "",
        [("weather", {"city": "Rome 3", "days": 3}), NOW],
    ),
    ("glm4", "the <tool_call> tag", "the <tool_call> tag", []),
    (
        "glm4",
        "<tool_call>weather<arg_key>days</arg_key><arg_value>3</arg_value> no",
        " no",
        [("weather", '{"days": 3')],
    ),
    (
        "deepseek_v3",
        f"Hm.{DS('calls▁begin')}{DS('call▁begin')}function{DS('sep')}weather\n```json\n{PARIS}\n```{DS('call▁end')}\n"
        f"{DS('call▁begin')}function{DS('sep')}now\n```json\n{{}}\n```{DS('call▁end')}{DS('calls▁end')}",
        "Hm.",
        [("weather", PARIS), NOW],
    ),
    (
        "deepseek_v3",
        f"{DS('calls▁begin')}{DS('call▁begin')}weather{DS('sep')}{SOFIA}{DS('call▁end')}{DS('calls▁end')}",
        "",
        [("weather", SOFIA)],
    ),
    ("deepseek_v3", f"{DS('calls▁begin')}{DS('call▁begin')}a b", f"{DS('calls▁begin')}{DS('call▁begin')}a b", []),
    ("granite", f'<|tool_call|>[{{"name": "weather", "arguments": {PARIS}}}]', "", [("weather", PARIS)]),
    ("granite", "<|tool_call|> soon", "<|tool_call|> soon", []),
    (
        "kimi_k2",
        f"Yes<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>{PARIS}<|tool_call_end|>"
        "<|tool_call_begin|>functions.now:1<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>",
        "Yes",
        [("weather", PARIS), NOW],
    ),
    (
        "gpt_oss",
        f"<|channel|>analysis<|message|>We need <b>.<|end|><|start|>assistant<|channel|>commentary<|message|>On it.<|end|>"
        f"<|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{PARIS}<|call|>"
        "<|start|>assistant to=functions.now<|channel|>commentary json<|message|>{}<|call|>",
        "On it.",
        [("weather", PARIS), NOW],
    ),
    ("gpt_oss", "<|channel|>final<|message|>plain 日本語 < <| text<|return|>", "plain 日本語 < <| text", []),
    ("gpt_oss", "no <|header|> at all", "no <|header|> at all", []),
    ("gpt_oss", f" to=functions.weather<|channel|>commentary json<|message|>{PARIS}<|call|>", "", [("weather", PARIS)]),
    ("gpt_oss", "to=functions.weather<|channel|>commentary", "to=functions.weather<|channel|>commentary", []),
    ("gpt_oss", "  to be <|end|> or not", "  to be  or not", []),
    ("gpt_oss", "<|channel|>commentary to=functions.now<|message|><|call|>", "", [NOW]),
    (
        "gpt_oss",
        "<|channel|>commentary to=python<|message|>print(1)<|call|>",
        "<|channel|>commentary to=python<|message|>print(1)",
        [],
    ),
    ("gpt_oss", "<|channel|>commentary to=functions.weather", "<|channel|>commentary to=functions.weather", []),
    (
        "gpt_oss",
        "<|channel|>commentary to=functions.weather<|message|>",
        "<|channel|>commentary to=functions.weather<|message|>",
        [],
    ),
    ("gpt_oss", '<|channel|>commentary to=functions.weather<|message|>{"city": "Pa', "", [("weather", '{"city": "Pa')]),
    (
        "gpt_oss",
        '<|channel|>commentary to=functions.weather<|message|>{"a": 1,,}<|call|>',
        ",}",
        [("weather", '{"a": 1,')],
    ),
    (
        "gpt_oss",
        "<|channel|>oops<|end|>then<|start|>assistant<|channel|>final<|message|>x<|return|>",
        "<|channel|>oops<|end|>thenx",
        [],
    ),
    ("kimi_k2", "<|tool_calls_section_begin|>nothing", "<|tool_calls_section_begin|>nothing", []),
]


def normal(events: list[Event]) -> list[tuple[Any, ...]]:
    """Events with neighbouring pieces of one kind joined."""
    found: list[tuple[Any, ...]] = []
    for event in events:
        match event:
            case Text(text) | Reasoning(text):
                key, value = (type(event).__name__,), text
            case ToolCallArguments(index, text):
                key, value = ("arguments", index), text
            case ToolCallBegin(index, name, call_id):
                key, value = ("begin", index, name, call_id), ""
            case ToolCallEnd(index):
                key, value = ("end", index), ""
        assert not isinstance(event, Text | Reasoning | ToolCallArguments) or value, "an empty piece"
        if found and found[-1][0] == key and key[0] not in ("begin", "end"):
            found[-1] = (key, found[-1][1] + value)
        else:
            found.append((key, value))
    return found


def replay(name: str, pieces: list[str]) -> list[Event]:
    parser = load_target(ENTRIES[name])(TOOLS)
    events: list[Event] = []
    for piece in pieces:
        events += parser.feed(piece)
    events += parser.finish()
    return events


def is_json_prefix(text: str) -> bool:
    """By completing it: whatever is open is closed, a value is put where one is due."""
    closers, inside, escaped = [], False, False
    for char in text:
        if inside:
            escaped, inside = (not escaped and char == "\\"), (escaped or char != '"')
        elif char == '"':
            inside = True
        elif char in "{[":
            closers.append("}" if char == "{" else "]")
        elif char in "}]":
            closers.pop()
    tail = "".join(reversed(closers))
    ends = [
        a + b for a in ("", '"', '0000"', '00"', '\\"', 'n"') for b in ("", ":0", "0", '"a":0', "ull", "alse", "rue")
    ]
    ends += ["ll", "l", "lse", "se", "e", "ue", "000" + '"']
    for end in ends:
        try:
            json.loads(text + end + tail)
            return True
        except ValueError:
            continue
    return False


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0]}-{c[1][:30]}")
def test_transcript_at_every_cut(case: tuple[str, str, str, list[Call]]) -> None:
    name, transcript, content, calls = case
    events = replay(name, [transcript])
    assert "".join(e.text for e in events if isinstance(e, Text)) == content
    begun = [e for e in events if isinstance(e, ToolCallBegin)]
    assert [e.name for e in begun] == [c[0] for c in calls]
    assert [e.index for e in begun] == list(range(len(calls)))
    ended = {e.index for e in events if isinstance(e, ToolCallEnd)}
    for index, (_, wanted) in enumerate(calls):
        arguments = "".join(e.json for e in events if isinstance(e, ToolCallArguments) and e.index == index)
        whole = index in ended
        if not whole:
            assert arguments == wanted
        else:
            assert json.loads(arguments) == (json.loads(wanted) if isinstance(wanted, str) else wanted)
    whole_events = normal(events)
    rng = random.Random(7)
    cuts = [[transcript[:i], transcript[i:]] for i in range(len(transcript) + 1)]
    cuts.append(list(transcript))
    for _ in range(20):
        at = sorted(rng.sample(range(len(transcript) + 1), min(len(transcript), rng.randint(1, 12))))
        cuts.append([transcript[a:b] for a, b in zip([0, *at], [*at, len(transcript)], strict=True)])
    for pieces in cuts:
        events = replay(name, pieces)
        assert normal(events) == whole_events, pieces
        arguments_so_far: dict[int, str] = {}
        for event in events:
            if isinstance(event, ToolCallArguments):
                arguments_so_far[event.index] = arguments_so_far.get(event.index, "") + event.json
                assert is_json_prefix(arguments_so_far[event.index])


@pytest.mark.parametrize("case", [c for c in CASES if c[3]], ids=lambda c: f"{c[0]}-{c[1][:30]}")
def test_transcript_cut_off_anywhere_loses_nothing_that_a_call_did_not_take(
    case: tuple[str, str, str, list[Call]],
) -> None:
    name, transcript, _, _ = case
    for end in range(len(transcript)):
        events = replay(name, [transcript[:end]])
        begun = sum(isinstance(e, ToolCallBegin) for e in events)
        if not begun:
            text = "".join(e.text for e in events if isinstance(e, Text | Reasoning))
            # the frames of messages are no text; what is in them is
            framed = name == "gpt_oss"
            assert (FRAME.sub("", text) == FRAME.sub("", transcript[:end])) if framed else text == transcript[:end]


def test_arguments_stream_before_the_call_ends() -> None:
    parser = load_target(ENTRIES["hermes"])(TOOLS)
    events = list(parser.feed('<tool_call>{"name": "weather", "arguments": {"city": "So'))
    assert [type(e) for e in events] == [ToolCallBegin, ToolCallArguments]
    assert [e.json for e in parser.feed("fi") if isinstance(e, ToolCallArguments)] == ["fi"]


def test_kimi_keeps_the_models_own_id() -> None:
    transcript = next(c[1] for c in CASES if c[0] == "kimi_k2")
    assert [e.call_id for e in replay("kimi_k2", [transcript]) if isinstance(e, ToolCallBegin)] == [
        "functions.weather:0",
        "functions.now:1",
    ]


# a header up to its message, or cut off by the end; and what ends a message
FRAME = re.compile(r"<\|(start|channel)\|>((?!<\|(message|end)\|>).)*(<\|message\|>|$)|<\|(end|call|return)\|>")

HOSTILE = {
    "hermes": [
        "<tool_cal",
        "<tool_call>",
        '<tool_call>{"name": "x", ',
        "\n" * 8,
        '<tool_call>{"name":"a","arguments":{"b":1}} ',
    ],
    "llama3_json": ['{"name": "now", "a": [', "["],
    "pythonic": ["[now(", "now(),", "((((((((", "'\\"],
    "mistral": ["[TOOL_CALLS", "[TOOL_CALLS]a", "[TOOL_CALLS][", '{"name":"now"},'],
    "qwen3_coder": ["<function=", "<function=now>", "<parameter=a>", "</para", "\n"],
    "glm4": ["<tool_call>a<arg_key>", "<arg_key>", "</arg_ke"],
    "deepseek_v3": [DS("calls▁begin"), DS("call▁begin") + "a", "<｜tool"],
    "granite": ["<|tool_call|>[", "<|tool_call", "[{"],
    "gpt_oss": [
        "<|channel|>",
        "<|start|>assistant",
        "<|channel|>commentary to=functions.now<|message|>",
        "<|channel|>final<|message|>a",
        "<|chan",
        "<|message|>",
        "<|end|>",
    ],
    "kimi_k2": ["<|tool_calls_section_begin|>", "<|tool_call_begin|>", "<|tool"],
}


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_nearly_matching_text_takes_linear_time(name: str) -> None:
    """Every unit alone and after the opening of a call, a character at a time."""
    opening = next(c[1] for c in CASES if c[0] == name and c[3])
    openings = ["", opening[: opening.index("weather") if "weather" in opening else 0], opening[: len(opening) // 2]]
    for unit in HOSTILE[name]:
        for start in openings:
            # a neighbour on the machine may spoil one comparison; what is quadratic spoils them all. A first look passes
            # only what is far from four times as long, so that the repeats are for what is in doubt
            for repeats, most in ((1, 2.5), *[(2, 3.0)] * 4):
                times = [seconds(name, start + unit * (count // len(unit)), repeats) for count in (8_000, 16_000)]
                if times[1] < most * times[0] + 0.02:
                    break
            else:
                pytest.fail(f"twice the text took {times[1] / times[0]:.1f} times as long: {unit!r} after {start!r}")


def seconds(name: str, text: str, repeats: int) -> float:
    """Of the processor, the best of so many."""
    best = 1e9
    for _ in range(repeats):
        begin = time.process_time()
        replay(name, list(text))
        best = min(best, time.process_time() - begin)
    return best


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_half_a_megabyte_of_nearly_matching_tags(name: str) -> None:
    text = "".join(HOSTILE[name])
    text *= 500_000 // len(text)
    begin = time.process_time()
    replay(name, [text[i : i + 16] for i in range(0, len(text), 16)])
    assert time.process_time() - begin < 5


def test_auto_markers_are_strings() -> None:
    assert all(e.info["markers"] for e in ENTRIES.values())
