"""Structural tags in both spellings, over the backends that read them: what they take, and what is refused by name."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.errors import RequestError
from core.interfaces.guided import UnsupportedConstraintError
from core.sampling_params import GuidedDecodingParams

PAGE = Path(__file__).parents[3] / "docs" / "make_guided.py"
spec = importlib.util.spec_from_file_location("make_guided_for_tags", PAGE)
assert spec is not None and spec.loader is not None
make_guided = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_guided)


@pytest.fixture(scope="module", params=["llguidance", "xgrammar"])
def backend(request: Any) -> Iterator[Any]:
    made = make_guided.backend(request.param)
    yield made
    getattr(made, "close", lambda: None)()


def tag(begin: str, content: Any, end: Any) -> dict[str, Any]:
    return {"type": "tag", "begin": begin, "content": content, "end": end}


ANY = {"type": "any_text"}
ONE = {"type": "json_schema", "json_schema": {"enum": [1, 2]}}
LITERAL = {"type": "const_string", "value": "END"}
F = tag("<f=a>", ONE, "</f>")

# format, texts it takes, texts it does not
FORMATS: list[tuple[dict[str, Any], list[str], list[str]]] = [
    ({"type": "const_string", "value": 'h"i/'}, ['h"i/'], ["hi", ""]),
    ({"type": "regex", "pattern": "[a-c/]+"}, ["ab/c"], ["d", ""]),
    (ONE, ["1"], ["3", ""]),
    (ANY, ["", "a\nb"], []),
    (tag("<a>", ANY, "</a>"), ["<a>x\ny</a>", "<a></a>"], ["<a>", "x", "<a>x</a>y"]),
    (tag("<a>", ANY, ["</a>", "<end>"]), ["<a>x</a>", "<a>x<end>"], ["<a>", "<a>x</a>y"]),
    (tag("<a>", ONE, ["</a>", "</b>"]), ["<a>1</a>", "<a>2</b>"], ["<a>3</a>", "<a>1"]),
    (tag("<a>", ONE, ""), ["<a>1"], ["<a>3", "1"]),
    (tag("<a>", {"type": "regex", "pattern": "[a-z]*"}, "z"), ["<a>abz", "<a>zz"], ["<a>", "<a>Z"]),
    ({"type": "sequence", "elements": [ANY, LITERAL, ONE]}, ["xxEND1", "END2"], ["xx1", "ENDx"]),
    ({"type": "sequence", "elements": [ANY, tag("<t>", ONE, "</t>")]}, ["x<t>1</t>"], ["x1", "<t>3</t>"]),
    ({"type": "sequence", "elements": [ONE, LITERAL, ANY]}, ["1END", "1ENDrest"], ["1", "END"]),
    ({"type": "or", "elements": [ONE, LITERAL]}, ["1", "END"], ["3"]),
    (
        {"type": "triggered_tags", "triggers": ["<f="], "tags": [F, tag("<f=b>", ANY, "</f>")]},
        ["", "free <", "x<f=a>1</f>y<f=b>what</f>"],
        ["<f=a>3</f>", "<f=c>1</f>", "<f=a>1"],
    ),
    (
        {
            "type": "triggered_tags",
            "triggers": ["<f="],
            "tags": [F],
            "at_least_one": True,
            "stop_after_first": True,
        },
        ["<f=a>1</f>"],
        ["", "x", "<f=a>1</f>y"],
    ),
    (
        {"type": "tags_with_separator", "tags": [F], "separator": ","},
        ["", "<f=a>1</f>", "<f=a>1</f>,<f=a>2</f>"],
        ["x", "<f=a>1</f>,"],
    ),
    (
        {
            "type": "tags_with_separator",
            "tags": [F],
            "separator": ",",
            "at_least_one": True,
            "stop_after_first": True,
        },
        ["<f=a>1</f>"],
        ["", "<f=a>1</f>,<f=a>2</f>"],
    ),
    ({"type": "star", "content": tag("(", ONE, ")")}, ["", "(1)(2)"], ["("]),
    ({"type": "plus", "content": tag("(", ONE, ")")}, ["(1)", "(1)(2)"], ["", "("]),
    ({"type": "repeat", "content": tag("(", ONE, ")"), "min": 1, "max": 2}, ["(1)", "(1)(2)"], ["", "(1)(1)(1)"]),
    ({"type": "repeat", "content": tag("(", ONE, ")"), "min": 1, "max": -1}, ["(1)(2)(1)"], [""]),
    ({"type": "optional", "content": ONE}, ["", "1"], ["3"]),
    ({"type": "any_text", "excludes": ["x"]}, ["", "abc\n"], ["axb", "x"]),
    ({"type": "any_text", "excludes": ["<|/-", "a.b", "é\n"]}, ["<|", "aXb", "</-", "é"], ["1a.b", "<|/-", "\né\n"]),
    (
        {
            "type": "sequence",
            "elements": [{"type": "any_text", "excludes": ["<|"]}, {"type": "const_string", "value": "<|"}, ONE],
        },
        ["<|1", "a<b|<|2"],
        ["<|<|1", "a1", "<|3"],
    ),
]


@pytest.mark.parametrize(("form", "valid", "invalid"), FORMATS, ids=[str(f[0])[:60] for f in FORMATS])
def test_format(backend: Any, form: dict[str, Any], valid: list[str], invalid: list[str]) -> None:
    params = GuidedDecodingParams(structural_tag={"type": "structural_tag", "format": form})
    assert not backend.unsupported(params)
    grammar = backend.compile(params)
    assert [t for t in valid if not make_guided.takes(grammar, t)] == []
    assert [t for t in invalid if make_guided.takes(grammar, t)] == []


def test_the_older_spelling(backend: Any) -> None:
    structures = [{"begin": "<f=a>", "schema": {"enum": [1]}, "end": "</f>"}]
    grammar = backend.compile(GuidedDecodingParams(structural_tag={"structures": structures, "triggers": ["<f="]}))
    assert make_guided.takes(grammar, "x <f=a>1</f> y") and not make_guided.takes(grammar, "<f=a>2</f>")


def test_what_only_xgrammar_reads() -> None:
    formats = [
        ({"type": "sequence", "elements": [{"type": "any_text", "excludes": [";"]}, ONE]}, "ab1", "a;1"),
        ({"type": "grammar", "grammar": 'root ::= "a" [0-9]'}, "a1", "b"),
        ({"type": "sequence", "elements": [ANY, ONE]}, "ab1", None),
    ]
    first, last = make_guided.backend("llguidance"), make_guided.backend("xgrammar")
    for form, valid, invalid in formats:
        params = GuidedDecodingParams(structural_tag={"format": form})
        with pytest.raises(UnsupportedConstraintError, match="not supported"):
            first.compile(params)
        grammar = last.compile(params)
        assert make_guided.takes(grammar, valid)
        assert invalid is None or not make_guided.takes(grammar, invalid)
    last.close()


def test_schemas_in_tags_are_checked_as_all_are(backend: Any) -> None:
    form = tag("<a>", {"type": "json_schema", "json_schema": {"type": "string", "not": {}}}, "</a>")
    assert backend.unsupported(GuidedDecodingParams(structural_tag={"format": form})) == ["not"]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("{", "not valid JSON"),
        ([1], "must be an object"),
        ({}, "structures"),
        ({"format": {"type": "sequnce", "elements": []}}, "'sequnce' is not known"),
        ({"format": {"elements": []}}, "None is not known"),
        ({"format": {"type": "sequence", "elements": []}}, "elements must be a list"),
        ({"format": {"type": "sequence", "elements": [{"type": "tag", "begin": "a"}]}}, r"elements\[0\] .* 'content'"),
        ({"format": {"type": "const_string", "value": 3}}, "value must be a string"),
        ({"format": {"type": "const_string", "value": "", "max": 3}}, "'max'"),
        ({"format": {"type": "repeat", "content": ANY, "min": 2, "max": 1}}, "min <= max"),
        ({"format": {"type": "repeat", "content": ANY, "min": 2, "max": 10**9}}, "min <= max"),
        ({"format": {"type": "json_schema", "json_schema": 3}}, "json_schema must be an object"),
        ({"format": {"type": "triggered_tags", "triggers": ["<g"], "tags": [F]}}, "none of the triggers"),
        ({"format": {"type": "tag", "begin": 3, "content": ANY, "end": ""}}, "begin must be a string"),
        ({"format": {**ANY, "excludes": "x"}}, "excludes must be a list"),
        ({"format": {**ANY, "excludes": [""]}}, "excludes must be a list"),
        ({"format": ANY, "triggers": ["a"]}, "one of the two spellings"),
        ({"format": ANY, "tags": []}, "'tags'"),
    ],
)
def test_wrong_tags_are_told_what_is_wrong(value: Any, words: str) -> None:
    params = GuidedDecodingParams(structural_tag="{}")
    from plugins.guided.structural_tag import read_structural_tag

    with pytest.raises(RequestError, match=words):
        read_structural_tag(value)
    assert params.structural_tag == "{}"
