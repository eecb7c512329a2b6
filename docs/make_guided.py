"""Writes docs/guided.md: which backend holds which keyword of JSON Schema, found by trying. python docs/make_guided.py"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.errors import RequestError
from core.interfaces.guided import Vocabulary
from core.sampling_params import GuidedDecodingParams

# section, what is tried, schema, valid documents, invalid documents; a document given as bytes is text to be read as it is
Case = tuple[str, str, Any, list[Any], list[Any]]
N, S, I = {"type": "null"}, {"type": "string"}, {"type": "integer"}  # noqa: E741
CASES: list[Case] = [
    ("any value", "`true`", True, [1, {"a": []}], [b"nul", b"{a: 1}"]),
    ("any value", "`false`", False, [], [1, None]),
    ("any value", "`type`", {"type": "integer"}, [3, -1], ["a", 1.5, None]),
    ("any value", "`type`, a list", {"type": ["string", "null"]}, ["a", None], [1]),
    ("any value", "`enum`", {"enum": [1, "a"]}, [1, "a"], [2, "b"]),
    ("any value", "`enum` of objects", {"enum": [{"a": 1}, [1]]}, [{"a": 1}], [{"a": 2}]),
    ("any value", "`enum` beside `type`", {"type": "string", "enum": ["a", 1]}, ["a"], [1, "b"]),
    ("any value", "`const`", {"const": "a"}, ["a"], ["b"]),
    ("any value", "`const` of an object", {"const": {"a": 1}}, [{"a": 1}], [{"a": 2}]),
    ("any value", "keywords without `type`", {"maxLength": 2}, [12345, "ab"], ["abc"]),
    ("any value", "keywords beside several types", {"type": ["string", "null"], "maxLength": 2}, [None, "ab"], ["abc"]),
    (
        "any value",
        "`nullable` (of OpenAPI; to JSON Schema it says nothing)",
        {"type": "string", "nullable": True},
        ["a"],
        [1, None],
    ),
    ("numbers", "`minimum`", {**I, "minimum": 3}, [3], [2]),
    ("numbers", "`minimum` of fractions", {"type": "number", "minimum": 0.5}, [0.5, 1], [0.25, 0]),
    ("numbers", "`maximum`", {**I, "maximum": 3}, [3, -7], [4]),
    ("numbers", "`exclusiveMinimum`", {**I, "exclusiveMinimum": 3}, [4], [3]),
    ("numbers", "`exclusiveMaximum`", {**I, "exclusiveMaximum": 3}, [2], [3]),
    (
        "numbers",
        "exclusive and another bound less than 1 away",
        {"type": "number", "exclusiveMinimum": 0, "maximum": 0.5},
        [0.25],
        [0, 1],
    ),
    ("numbers", "`exclusiveMinimum: true` (draft 4)", {**I, "minimum": 3, "exclusiveMinimum": True}, [4], [3]),
    ("numbers", "`multipleOf`", {**I, "multipleOf": 3}, [9, 0], [10]),
    ("numbers", "`multipleOf` of fractions", {"type": "number", "multipleOf": 0.5}, [0.5, 2], [0.25]),
    ("numbers", "`multipleOf` with bounds", {**I, "multipleOf": 3, "maximum": 5}, [3], [6, -1]),
    ("strings", "any string", S, ["", "a", "é", '"', "\n"], [b'"\t"', b'"\x01"', b'"""', b'"\\x"', b'"a']),
    ("strings", "`minLength`", {**S, "minLength": 2}, ["ab"], ["a", b'"a\t"', b'"a""']),
    ("strings", "`maxLength`", {**S, "maxLength": 2}, ["ab", "éé"], ["abc", b'"\t"', b'"""']),
    ("strings", "`pattern`, anchored", {**S, "pattern": "^[ab]+$"}, ["abba"], ["abc", ""]),
    ("strings", "`pattern`, a search", {**S, "pattern": "b"}, ["abc"], ["ac"]),
    ("strings", "`pattern` beside `maxLength`", {**S, "pattern": "^[ab]+$", "maxLength": 2}, ["ab"], ["aba"]),
    ("strings", "`pattern` with a dot", {**S, "pattern": "^.$"}, ["a"], ["ab", b'"""']),
    ("strings", "`pattern` with look-ahead", {**S, "pattern": "^(?=a)[ab]$"}, ["a"], ["b"]),
    ("strings", "`format: date`", {**S, "format": "date"}, ["2024-02-29"], ["2024-13-01", "x"]),
    ("strings", "`format: time`", {**S, "format": "time"}, ["12:30:00Z"], ["12:61:00Z", "x"]),
    ("strings", "`format: date-time`", {**S, "format": "date-time"}, ["2024-02-29T12:30:00Z"], ["2024-02-29", "x"]),
    ("strings", "`format: duration`", {**S, "format": "duration"}, ["P3D"], ["3 days"]),
    ("strings", "`format: email`", {**S, "format": "email"}, ["a@b.example"], ["a@", "x"]),
    ("strings", "`format: hostname`", {**S, "format": "hostname"}, ["a.example"], ["-a-", "a b"]),
    ("strings", "`format: ipv4`", {**S, "format": "ipv4"}, ["10.0.0.1"], ["10.0.0", "10.0.0.999"]),
    ("strings", "`format: ipv6`", {**S, "format": "ipv6"}, ["::1"], ["10.0.0.1", ":::"]),
    ("strings", "`format: uuid`", {**S, "format": "uuid"}, ["9b2e1fd0-7f6c-4c6f-8d6a-6a1f1f0c2b11"], ["9b2e", "x"]),
    ("strings", "`format: uri`", {**S, "format": "uri"}, ["https://a.example/b"], ["a b"]),
    ("strings", "`format: regex`", {**S, "format": "regex"}, ["a+"], ["(", "["]),
    ("strings", "`format: json-pointer`", {**S, "format": "json-pointer"}, ["/a"], ["a"]),
    ("strings", "`format`, unknown", {**S, "format": "nothing-known"}, [], []),
    ("strings", "`format` beside `maxLength`", {**S, "format": "date", "maxLength": 3}, [], ["2024-02-29"]),
    ("arrays", "`items`", {"type": "array", "items": N}, [[None], []], [[1]]),
    ("arrays", "`items: false`", {"type": "array", "items": False}, [[]], [[1]]),
    ("arrays", "`prefixItems`", {"type": "array", "prefixItems": [N], "items": False}, [[None]], [[1], [None, 1]]),
    ("arrays", "`prefixItems`, open", {"type": "array", "prefixItems": [N]}, [[None, 1]], [[1]]),
    ("arrays", "`items`, a list (draft 7)", {"type": "array", "items": [N], "additionalItems": False}, [[None]], [[1]]),
    (
        "arrays",
        "`additionalItems` (draft 7)",
        {"type": "array", "items": [N], "additionalItems": I},
        [[None, 1]],
        [[None, "a"], [1]],
    ),
    (
        "arrays",
        "`additionalItems` beside `prefixItems`",
        {"type": "array", "prefixItems": [N], "additionalItems": False},
        [[None]],
        [[1]],
    ),
    ("arrays", "`minItems`", {"type": "array", "items": N, "minItems": 1}, [[None]], [[]]),
    ("arrays", "`maxItems`", {"type": "array", "items": N, "maxItems": 1}, [[None]], [[None, None]]),
    ("arrays", "`uniqueItems`", {"type": "array", "items": I, "uniqueItems": True}, [[1, 2]], [[1, 1]]),
    ("arrays", "`uniqueItems: false`", {"type": "array", "items": I, "uniqueItems": False}, [[1, 1]], [["a"]]),
    ("arrays", "`contains`", {"type": "array", "contains": {"const": 1}}, [[1]], [[2]]),
    ("arrays", "`minContains`", {"type": "array", "contains": {"const": 1}, "minContains": 2}, [[1, 1]], [[1]]),
    ("arrays", "`maxContains`", {"type": "array", "contains": {"const": 1}, "maxContains": 1}, [[1]], [[1, 1]]),
    ("arrays", "`unevaluatedItems`", {"type": "array", "unevaluatedItems": False}, [[]], [[1]]),
    ("objects", "`properties`", {"type": "object", "properties": {"a": N}}, [{"a": None}, {}], [{"a": 1}]),
    (
        "objects",
        "`required`",
        {"type": "object", "properties": {"a": N}, "required": ["a"]},
        [{"a": None}],
        [{}, {"a": 1}],
    ),
    ("objects", "`required` of names without properties", {"type": "object", "required": ["a"]}, [{"a": 1}], [{}]),
    (
        "objects",
        "`additionalProperties: false`",
        {"type": "object", "properties": {"a": N}, "additionalProperties": False},
        [{"a": None}],
        [{"b": 1}],
    ),
    (
        "objects",
        "`additionalProperties`, a schema",
        {"type": "object", "additionalProperties": N},
        [{"b": None}],
        [{"b": 1}],
    ),
    (
        "objects",
        "`additionalProperties` beside `properties`",
        {"type": "object", "properties": {"a": I}, "additionalProperties": N},
        [{"a": 1}, {"a": 1, "b": None}],
        [{"b": 1}, {"a": None}],
    ),
    ("objects", "`patternProperties`", {"type": "object", "patternProperties": {"^a$": N}}, [{"a": None}], [{"a": 1}]),
    (
        "objects",
        "`patternProperties`, two that overlap",
        {"type": "object", "patternProperties": {"^a": I, "b$": {"minimum": 3}}},
        [{"ab": 3}],
        [{"ab": 2}],
    ),
    ("objects", "`propertyNames`", {"type": "object", "propertyNames": {"maxLength": 1}}, [{"a": 1}], [{"ab": 1}]),
    (
        "objects",
        "`propertyNames` with `enum`",
        {"type": "object", "propertyNames": {"enum": ["a", "b"]}},
        [{"a": 1}],
        [{"c": 1}],
    ),
    (
        "objects",
        "`propertyNames` with a pattern",
        {"type": "object", "propertyNames": {"pattern": "^[a-c]+$"}},
        [{"abc": 1}],
        [{"d": 1}],
    ),
    ("objects", "`minProperties: 1`", {"type": "object", "minProperties": 1}, [{"a": 1}], [{}]),
    (
        "objects",
        "`minProperties: 2`",
        {"type": "object", "minProperties": 2},
        [{"a": 1, "b": 1}],
        [{"a": 1}, b'{"a":1,"a":1}'],
    ),
    ("objects", "`maxProperties`", {"type": "object", "maxProperties": 1}, [{"a": 1}], [{"a": 1, "b": 2}]),
    (
        "objects",
        "`dependentRequired`",
        {"type": "object", "dependentRequired": {"a": ["b"]}},
        [{"a": 1, "b": 1}],
        [{"a": 1}],
    ),
    (
        "objects",
        "`dependentSchemas`",
        {"type": "object", "dependentSchemas": {"a": {"required": ["b"]}}},
        [{"a": 1, "b": 1}],
        [{"a": 1}],
    ),
    ("objects", "`dependencies` (draft 7)", {"type": "object", "dependencies": {"a": ["b"]}}, [{"b": 1}], [{"a": 1}]),
    ("objects", "`unevaluatedProperties`", {"type": "object", "unevaluatedProperties": False}, [{}], [{"a": 1}]),
    ("combinations", "`anyOf`", {"anyOf": [N, I]}, [1, None], ["a"]),
    ("combinations", "`anyOf` beside others", {"anyOf": [{"minimum": 3}, {"maximum": 1}], **I}, [3, 0], [2]),
    ("combinations", "`oneOf`", {"oneOf": [N, I]}, [1, None], ["a"]),
    ("combinations", "`oneOf` that overlaps", {"oneOf": [{"type": "number"}, I]}, [1.5], [1]),
    ("combinations", "`allOf`", {"allOf": [I, {"minimum": 3}]}, [3], [2, "a"]),
    (
        "combinations",
        "`allOf` of objects",
        {
            "allOf": [
                {"type": "object", "properties": {"a": I}, "required": ["a"]},
                {"type": "object", "properties": {"b": I}, "required": ["b"]},
            ]
        },
        [{"a": 1, "b": 1}],
        [{"a": 1}, {"b": 1}],
    ),
    ("combinations", "`not`", {**I, "not": {"const": 1}}, [2], [1]),
    ("combinations", "`if`, `then`, `else`", {"if": {"const": 1}, "then": False, "else": I}, [2], [1, "a"]),
    ("references", "`$ref` and `$defs`", {"$ref": "#/$defs/a", "$defs": {"a": N}}, [None], [1]),
    ("references", "`definitions` (draft 7)", {"$ref": "#/definitions/a", "definitions": {"a": N}}, [None], [1]),
    ("references", "`$ref` beside others", {"$ref": "#/$defs/a", "maximum": 3, "$defs": {"a": I}}, [3], [4]),
    (
        "references",
        "`$ref`, recursive",
        {"$ref": "#/$defs/n", "$defs": {"n": {"anyOf": [N, {"type": "array", "items": {"$ref": "#/$defs/n"}}]}}},
        [None, [[None]]],
        [1, [[1]]],
    ),
    ("references", "`$ref` to `$anchor`", {"$ref": "#x", "$defs": {"a": {"$anchor": "x", **N}}}, [None], [1]),
    (
        "references",
        "`$ref` to `$id`",
        {"$id": "https://a.example/r", "$ref": "b", "$defs": {"a": {"$id": "b", **N}}},
        [None],
        [1],
    ),
    ("references", "`$ref` to another document", {"$ref": "https://a.example/s"}, [], [1]),
    ("references", "`$dynamicRef`", {"$dynamicRef": "#x", "$defs": {"a": {"$dynamicAnchor": "x", **N}}}, [None], [1]),
    ("references", "`$recursiveRef` (2019-09)", {"type": "array", "items": {"$recursiveRef": "#"}}, [[[]]], [[1]]),
    (
        "annotations",
        "`title`, `description`, `default`, `examples`, `deprecated`, `readOnly`, `writeOnly`, `$comment`, `$schema`",
        {
            **I,
            "title": "t",
            "description": "d",
            "default": 1,
            "examples": [1],
            "deprecated": True,
            "readOnly": True,
            "writeOnly": False,
            "$comment": "c",
            "$schema": "https://json-schema.org/draft/2020-12/schema",
        },
        [1],
        ["a"],
    ),
    (
        "annotations",
        "`contentEncoding`, `contentMediaType`",
        {**S, "contentEncoding": "base64", "contentMediaType": "a/b"},
        ["YQ=="],
        [1],
    ),
    ("annotations", "`contentSchema`", {**S, "contentSchema": N}, ["null"], [1]),
    ("annotations", "a keyword that nobody knows, which says nothing", {**I, "xyz": 1}, [1], ["a"]),
    ("annotations", "a type that nobody knows", {"type": "strin"}, [], [1, "a"]),
]

EOS = 0
BACKENDS = ("llguidance", "outlines", "xgrammar")


def vocabulary() -> Vocabulary:
    """Every byte is a token, and EOS."""
    tokens = [b"", *(bytes([b]) for b in range(256))]
    return Vocabulary(tokens, (EOS,), len(tokens), None)


def backend(name: str) -> Any:
    import importlib

    module, target = {
        "llguidance": ("plugins.guided.llguidance", "LLGuidanceBackend"),
        "outlines": ("plugins.guided.outlines", "OutlinesBackend"),
        "xgrammar": ("plugins.guided.xgrammar", "XGrammarBackend"),
    }[name]
    return getattr(importlib.import_module(module), target)(vocabulary())


def spellings(document: Any) -> Iterator[str]:
    if isinstance(document, bytes):
        yield document.decode()
        return
    yield json.dumps(document, separators=(",", ":"), ensure_ascii=False)
    yield json.dumps(document, ensure_ascii=False)


def takes(grammar: Any, text: str) -> bool:
    matcher = grammar.matcher()
    return all(matcher.accept(b + 1) for b in text.encode()) and bool(matcher.accept(EOS))


def check(backend: Any, case: Case) -> tuple[str, list[str]]:
    """-> "held", "named" or "refused", and what is wrong: valid documents refused, invalid ones accepted."""
    _, _, schema, valid, invalid = case
    params = GuidedDecodingParams(json=schema)
    wrong = []
    try:
        if named := backend.unsupported(params):
            text = json.dumps(schema)
            return "named", [f"names {k}, which is not in the schema" for k in named if k not in text]
        grammar = backend.compile(params)
    except RequestError as error:
        if "not accepted" not in str(error):
            wrong.append(f"an error that does not say what is not accepted: {error}")
        return "refused", wrong
    # one spelling of a valid document is enough: the model writes the one that it may
    wrong += [f"refuses {d!r}" for d in valid if not any(takes(grammar, t) for t in spellings(d))]
    wrong += [f"accepts {t}" for d in invalid for t in spellings(d) if takes(grammar, t)]
    return "held", wrong


def outcomes(name: str) -> list[tuple[str, list[str]]]:
    """What `check` says of every case."""
    made = backend(name)
    try:
        return [check(made, case) for case in CASES]
    finally:
        getattr(made, "close", lambda: None)()


def page(found: dict[str, list[tuple[str, list[str]]]]) -> str:
    lines = [
        "# Structured output",
        "",
        "## Constraints",
        "",
        "One request takes one constraint, in any of these spellings; two are an error, and so is a key that only looks",
        "like one of them.",
        "",
        "| constraint | over HTTP | in Python, `GuidedDecodingParams(...)` |",
        "| --- | --- | --- |",
        '| JSON schema | `response_format={"type": "json_schema", ...}`, `guided_json`, `structured_outputs={"json": ...}` | `json=` |',
        '| any JSON object | `response_format={"type": "json_object"}`, `guided_json_object` | `json_object=True` |',
        '| regex | `guided_regex`, `structured_outputs={"regex": ...}` | `regex=` |',
        '| one of several texts | `guided_choice`, `structured_outputs={"choice": ...}` | `choice=` |',
        '| grammar, Lark or EBNF | `guided_grammar`, `structured_outputs={"grammar": ...}` | `grammar=` |',
        '| structural tags | `response_format={"type": "structural_tag", ...}` with `format`, or with `structures` and `triggers` | `structural_tag=` |',
        "",
        "`guided_decoding_backend` (`backend=`) names a backend; left out, `--guided-backend` does, and `auto` takes the first",
        "of the list below that holds every keyword of the schema. `guided_whitespace_pattern` says what may stand between",
        "JSON's tokens; left out, up to 64 blanks.",
        "",
        "| backend | what it is |",
        "| --- | --- |",
        "| `llguidance` | the default: every kind of constraint, compiled in milliseconds |",
        "| `outlines` | regexes, choices and simple schemas as one automaton, compiled in a process that can be killed |",
        "| `xgrammar` | an extra, `pip install 'backplane[xgrammar]'`: every kind; `propertyNames`, and all formats of structural tags |",
        "",
        "## Keywords of JSON Schema",
        "",
        "Made by `python docs/make_guided.py`, which compiles a schema for every line and tries valid and invalid documents.",
        "**yes**: takes the valid ones, refuses the invalid ones. **no**: the request is an error that names the keyword, or",
        "`auto` goes on to the next backend. No line is ignored in silence. Properties come in the schema's order.",
    ]
    section = ""
    for index, case in enumerate(CASES):
        if case[0] != section:
            section = case[0]
            lines += ["", f"### {section.capitalize()}", "", f"| | {' | '.join(BACKENDS)} |"]
            lines.append("| --- " * (1 + len(BACKENDS)) + "|")
        row = ["yes" if found[name][index][0] == "held" else "no" for name in BACKENDS]
        lines.append(f"| {case[1]} | {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    found = {name: outcomes(name) for name in BACKENDS}
    wrong = [
        f"{name}, {case[1]}: {'; '.join(what)}"
        for name in BACKENDS
        for case, (_, what) in zip(CASES, found[name], strict=True)
        if what
    ]
    if wrong:
        raise SystemExit("\n".join(wrong))
    Path(__file__).with_name("guided.md").write_text(page(found))


if __name__ == "__main__":
    main()
