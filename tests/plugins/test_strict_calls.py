"""What `strict_format` of the parsers says: calls as the models write them fit, wrong arguments do not, and text is free."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from core.errors import RequestError
from core.interfaces.guided import Vocabulary
from core.interfaces.parser import Text, ToolCallArguments, ToolCallBegin
from core.registry import Entry, load_target
from core.sampling_params import GuidedDecodingParams
from core.text.token_bytes import token_bytes
from plugins import parsers
from plugins.guided.llguidance import LLGuidanceBackend
from plugins.parsers.gpt_oss import GptOssReasoning
from plugins.parsers.reasoning import MagistralReasoning

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


def in_keywords(arguments: str) -> str:
    value = json.loads(arguments)
    if not isinstance(value, dict):
        return arguments
    return ", ".join(f"{k}={json.dumps(v)}" for k, v in value.items())


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
    "pythonic": [
        lambda calls: "[" + ", ".join(f"{n}({in_keywords(a)})" for n, a in calls) + "]",
    ],
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


def test_which_formats_can_be_strict():
    assert {n for n, e in ENTRIES.items() if hasattr(load_target(e), "strict_format")} == set(ENTRIES)
    assert set(ENTRIES) == {*WRITTEN, *TAGGED, "gpt_oss"}


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
            if name not in ("llama3_json", "pythonic"):  # there the whole output is the call
                assert make_guided.takes(made, "Let me see. " + text)
                assert read(name, "Let me see. " + text)[1] == [(n, json.loads(a)) for n, a in calls]
        for call in BAD:
            for calls in ([call], [GOOD[0], call]):
                if (name, *calls) == ("pythonic", ("then", "{}")):
                    continue  # no marker says that this is a call: it is text
                assert not make_guided.takes(made, write(calls)), write(calls)


# ---- whole messages with headers

ANALYSIS = "<|channel|>analysis<|message|>1 < 2, to=functions.weather {"
SAID = "<|channel|>commentary<|message|>On it.\n"
NEXT = "<|end|><|start|>assistant"
HARMONY: list[Callable[[str, str], str]] = [
    lambda n, a: f"<|channel|>commentary to=functions.{n} <|constrain|>json<|message|>{a}<|call|>",
    lambda n, a: f"<|channel|>commentary to=functions.{n}<|message|>{a}",
    lambda n, a: f"<|channel|>analysis to=functions.{n} json<|message|>{a}",
    lambda n, a: f" to=functions.{n}<|channel|>commentary <|constrain|>json<|message|>{a}<|call|>",
    lambda n, a: f" to=functions.{n}<|channel|>commentary json<|message|>{a}<|call|>",
]


def harmony_cases() -> list[tuple[str, str, list[tuple[str, Any]] | None]]:
    """(output, content, calls); calls None: it is not taken"""
    cases: list[tuple[str, str, list[tuple[str, Any]] | None]] = [
        ("<|channel|>final<|message|>Hi <b> {.", "Hi <b> {.", []),
        (f"{ANALYSIS}{NEXT}<|channel|>final<|message|>Hi.", "Hi.", []),
        (f"{ANALYSIS}{NEXT}{SAID}{NEXT}<|channel|>final<|message|>", "On it.", []),
        (ANALYSIS, "", []),
        ("Hi.", "", None),
        ("<|channel|>oops<|message|>a", "", None),
        ("<|channel|>final", "", None),
        ("<|channel|>commentary to=python<|message|>{}", "", None),
        ("<|channel|>final to=functions.now<|message|>{}", "", None),
    ]
    for write in HARMONY:
        for before, content in (("", ""), (ANALYSIS + NEXT, ""), (ANALYSIS + NEXT + SAID + NEXT, "On it.")):
            cases += [(before + write(n, a), content, [(n, json.loads(a))]) for n, a in GOOD]
            cases += [(before + write(n, a), "", None) for n, a in BAD]
            cases.append((before + write("now", ""), "", None))
            cases.append((before + write("now", "{}").removesuffix("<|call|>") + "and more", "", None))
            both = before + write("now", "{}").removesuffix("<|call|>") + "<|call|><|start|>assistant" + write(*GOOD[0])
            cases.append((both, content, [("now", {}), (GOOD[0][0], json.loads(GOOD[0][1]))]))
    return cases


def read_harmony(text: str) -> tuple[str, list[tuple[str, Any]]]:
    """As the server does: reasoning is taken out first."""
    thinks = GptOssReasoning(TOOLS)
    events = [*thinks.feed(text), *thinks.finish()]
    return read("gpt_oss", "".join(e.text for e in events if isinstance(e, Text)))


def test_headers_name_known_functions_and_arguments_follow(backend):
    made = grammar(backend, "gpt_oss")
    for text, content, calls in harmony_cases():
        assert make_guided.takes(made, text) is (calls is not None), text
        if calls is not None:
            assert read_harmony(text) == (content, calls), text
    with pytest.raises(RequestError, match="'say it' has a name that a header cannot hold"):
        load_target(ENTRIES["gpt_oss"]).strict_format([{"function": {"name": "say it"}}])


SPECIAL = ("<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|return|>", "<|call|>")


@pytest.fixture(scope="module")
def special(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tokenizer whose markers are special tokens, as these models have them, and the backend for it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[*SPECIAL, "[THINK]", "[/THINK]", "[TOOL_CALLS]", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["commentary to=functions.weather json", "analysis final assistant"] * 20, trainer)
    file = tmp_path_factory.mktemp("special") / "tokenizer.json"
    tokenizer.save(str(file))
    size = tokenizer.get_vocab_size()
    ids = [tokenizer.token_to_id(t) for t in ("<|return|>", "<|call|>", "</s>")]
    vocabulary = Vocabulary(token_bytes(tokenizer, frozenset(range(11)), size), tuple(ids), size, str(file))
    return tokenizer, ids, LLGuidanceBackend(vocabulary)


def takes_tokens(special: Any, made: Any, text: str) -> bool:
    """Is this the whole output? The sequence's end is accepted behind it."""
    tokenizer, ends, _ = special
    matcher = made.matcher()
    mask = np.zeros((tokenizer.get_vocab_size() + 31) // 32, np.int32)
    for token in tokenizer.encode(text).ids:
        if token in ends:
            break
        matcher.fill(mask)
        taken = matcher.accept(token)
        assert bool(mask[token // 32] >> (token % 32) & 1) is taken  # what the mask says is what is taken
        if not taken:
            return False
    return bool(matcher.accept(ends[0]))


def test_headers_of_special_tokens(special):
    made = grammar(special[2], "gpt_oss")
    for text, _, calls in harmony_cases():
        assert takes_tokens(special, made, text) is (calls is not None), text
    assert not takes_tokens(special, made, "<|channel|>final<|message|>a<|channel|>final<|message|>b")


def test_reasoning_between_special_tokens_comes_before_calls(special):
    mistral = load_target(ENTRIES["mistral"])
    call = WRITTEN["mistral"][0]
    thought = "[THINK]Hm, 1 < 2.[/THINK]"

    def made(opened_by: str) -> Any:
        tree = MagistralReasoning.strict_around(mistral.strict_format(TOOLS), opened_by)
        return special[2].compile(GuidedDecodingParams(structural_tag={"format": tree}))

    opens, opened = made(""), made("[THINK]")
    for text in ("", "Yes.", call([GOOD[0]]), "Yes. " + call(GOOD)):
        assert takes_tokens(special, opens, text) and takes_tokens(special, opens, thought + text)
        assert takes_tokens(special, opened, thought.removeprefix("[THINK]") + text)
    for bad in BAD:
        assert not takes_tokens(special, opens, call([bad]))
        assert not takes_tokens(special, opens, thought + call([bad]))
        assert not takes_tokens(special, opened, thought.removeprefix("[THINK]") + call([bad]))
    assert not takes_tokens(special, opened, "still thinking")


# ---- arguments as tagged text


def qwen3_coder(name: str, arguments: dict[str, str]) -> str:
    inside = "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in arguments.items())
    return f"<tool_call>\n<function={name}>\n{inside}</function>\n</tool_call>"


def glm4(name: str, arguments: dict[str, str]) -> str:
    inside = "".join(f"<arg_key>{k}</arg_key>\n<arg_value>{v}</arg_value>\n" for k, v in arguments.items())
    return f"<tool_call>{name}\n{inside}</tool_call>"


TAGGED = {"qwen3_coder": qwen3_coder, "glm4": glm4}
TAGGED_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "note",
            "parameters": {
                "type": "object",
                "properties": {
                    "text": {"type": "string", "description": "what to write"},
                    "kind": {"type": "string", "enum": ["memo", "list"]},
                    "count": {"type": "integer"},
                    "size": {"$ref": "#/$defs/size"},
                    "tags": {"type": "array", "items": {"type": "string"}},
                },
                "required": ["text", "kind", "count"],
                "additionalProperties": False,
                "$defs": {"size": {"enum": ["A4", 5]}},
            },
        },
    },
    {"type": "function", "function": {"name": "free", "parameters": {"type": "object"}}},
    {"type": "function", "function": {"name": "none", "parameters": {"type": "object", "additionalProperties": False}}},
]
TEXT = 'say "hi" <b>\nthen {1: 2}'
LEAST = {"text": TEXT, "kind": "memo", "count": "3"}
# arguments as written, and what they mean
TAGGED_GOOD: list[tuple[str, dict[str, str], dict[str, Any]]] = [
    ("note", LEAST, {"text": TEXT, "kind": "memo", "count": 3}),
    (
        "note",
        {**LEAST, "size": '"A4"', "tags": '["a", "5"]'},
        {"text": TEXT, "kind": "memo", "count": 3, "size": "A4", "tags": ["a", "5"]},
    ),
    ("note", {**LEAST, "tags": "[]"}, {"text": TEXT, "kind": "memo", "count": 3, "tags": []}),
    ("free", {"what": "ever", "n": "5"}, {"what": "ever", "n": 5}),
    ("free", {}, {}),
    ("none", {}, {}),
]
TAGGED_BAD: list[tuple[str, dict[str, str]]] = [
    ("note", {**LEAST, "kind": "poem"}),
    ("note", {**LEAST, "count": "three"}),
    ("note", {**LEAST, "size": '"A5"'}),
    ("note", {**LEAST, "tags": "[1]"}),
    ("note", {**LEAST, "more": "1"}),
    ("note", {"text": TEXT, "count": "3"}),
    ("none", {"a": "1"}),
    ("other", {}),
]


@pytest.mark.parametrize("name", TAGGED)
def test_tagged_arguments_follow_their_schemas(backend, name):
    target = load_target(ENTRIES[name])
    params = GuidedDecodingParams(structural_tag={"format": target.strict_format(TAGGED_TOOLS)})
    assert backend.unsupported(params) == []
    made, write = backend.compile(params), TAGGED[name]
    assert make_guided.takes(made, "No call < here.\n")
    for function, written, meant in TAGGED_GOOD:
        for before in ("", "Let me see. "):
            whole = before + write(function, written)
            assert make_guided.takes(made, whole), whole
            parser = target(TAGGED_TOOLS)
            events = [*parser.feed(whole), *parser.finish()]
            assert [e.name for e in events if isinstance(e, ToolCallBegin)] == [function]
            assert json.loads("".join(e.json for e in events if isinstance(e, ToolCallArguments))) == meant
    for function, written in TAGGED_BAD:
        assert not make_guided.takes(made, write(function, written)), write(function, written)
    if name == "qwen3_coder":  # which leaves <tool_call> out at times
        bare = write("none", {"a": "1"}).removeprefix("<tool_call>\n").removesuffix("\n</tool_call>")
        assert not make_guided.takes(made, bare)
        bare = write("note", LEAST).removeprefix("<tool_call>\n").removesuffix("\n</tool_call>")
        assert make_guided.takes(made, bare)


@pytest.mark.parametrize("name", TAGGED)
def test_what_tagged_text_cannot_be_held_to_is_named(name):
    for schema, words in (
        ({"properties": {"a": {"type": "string", "minLength": 2}}}, "a, a string with 'minLength'"),
        ({"properties": {"a": {"type": ["string", "null"]}}}, "a, whose type is a string or something else"),
        ({"anyOf": [{"type": "object"}]}, "parameters with 'anyOf'"),
    ):
        tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", **schema}}}
        with pytest.raises(RequestError, match=words):
            load_target(ENTRIES[name]).strict_format([tool])


PYTHONIC = {
    "type": "object",
    "properties": {
        "a": {"type": "boolean"},
        "b": {"type": "string", "minLength": 2},
        "c": {"type": ["integer", "null"]},
        "d": {"type": "array", "items": {"type": "object"}},
    },
    "required": ["b"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("required", [[], ["b"], ["a", "d"], ["a", "b", "c", "d"]])
def test_keywords_are_the_schema_s_in_its_order(backend, required):
    """Every set of parameters: those with all that are required are taken, and mean what JSON says."""
    target = load_target(ENTRIES["pythonic"])
    tool = {"type": "function", "function": {"name": "f", "parameters": {**PYTHONIC, "required": required}}}
    made = backend.compile(GuidedDecodingParams(structural_tag={"format": target.strict_format([tool])}))
    values = {"a": "true", "b": '"x)], 😀"', "c": "null", "d": '[{"k": [false, -1.5]}]'}
    for chosen in range(16):
        keys = [k for i, k in enumerate(values) if chosen >> i & 1]
        written = "[f(" + ", ".join(f"{k}={values[k]}" for k in keys) + ")]"
        assert make_guided.takes(made, written) is (set(required) <= set(keys)), written
        parser = target([tool])
        events = [*parser.feed(written), *parser.finish()]
        got = json.loads("".join(e.json for e in events if isinstance(e, ToolCallArguments)))
        assert got == {k: json.loads(values[k]) for k in keys}
    for wrong in ('b="x"', 'c=1, b="xy"', "b=5", 'b="xy", e=1', 'b="xy",', 'a=True, b="xy"'):
        assert not make_guided.takes(made, f"[f({wrong})]"), wrong


def test_what_python_cannot_call_is_named():
    for name, schema, words in (
        ("get-it", {}, "a name that Python cannot call"),
        ("f", {"properties": {"from-to": {}}}, "a parameter 'from-to', which is no name in Python"),
        ("f", {"properties": {"from": {}}}, "a parameter 'from', which is no name in Python"),
        ("f", {"anyOf": [{"type": "object"}]}, "parameters with 'anyOf'"),
    ):
        tool = {"type": "function", "function": {"name": name, "parameters": {"type": "object", **schema}}}
        with pytest.raises(RequestError, match=words):
            load_target(ENTRIES["pythonic"]).strict_format([tool])


def test_a_character_that_json_writes_in_two_halves_is_one_again():
    for written, meant in (('"\\ud83d\\ude00"', "😀"), ("'é😀'", "é😀")):
        assert read_pythonic(f"[weather(city={written}, days=1)]") == [{"city": meant, "days": 1}]
    assert read_pythonic('[weather(city="\\ud83d", days=1)]') == []  # half of one: no text at all


def read_pythonic(text: str) -> list[Any]:
    return [arguments for _, arguments in read("pythonic", text)[1]]
