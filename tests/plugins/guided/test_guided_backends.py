"""JSON-schema keywords, one by one: a backend either holds a keyword (takes valid, refuses invalid documents) or names it.

The cases are those of docs/guided.md; then random schemas, against a validator that is no part of this project.
"""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from core.errors import RequestError
from core.sampling_params import GuidedDecodingParams
from plugins.guided.constraint import read_schema, subschemas
from plugins.guided.regex import exact_regex, is_anchored

PAGE = Path(__file__).parents[3] / "docs" / "make_guided.py"
spec = importlib.util.spec_from_file_location("make_guided", PAGE)
assert spec is not None and spec.loader is not None
make_guided = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_guided)


@pytest.fixture(scope="module")
def found() -> dict[str, list[tuple[str, list[str]]]]:
    return {name: make_guided.outcomes(name) for name in make_guided.BACKENDS}


@pytest.mark.parametrize("name", make_guided.BACKENDS)
@pytest.mark.parametrize("index", range(len(make_guided.CASES)), ids=[c[1] for c in make_guided.CASES])
def test_keyword_is_held_or_named(found: Any, name: str, index: int) -> None:
    assert not found[name][index][1]


def test_the_table_is_up_to_date(found: Any) -> None:
    text = PAGE.with_name("guided.md").read_text()
    assert text == make_guided.page(found), "docs/guided.md is old: run python docs/make_guided.py"


def test_the_check_can_fail() -> None:
    made = make_guided.backend("llguidance")
    assert make_guided.check(made, ("", "", {"type": "integer"}, ["a"], [1])) == (
        "held",
        ["refuses 'a'", "accepts 1", "accepts 1"],
    )
    made.unsupported = lambda params: ["nowhere"]
    assert make_guided.check(made, ("", "", {}, [], []))[1]


# ---- random schemas

TEXTS = [
    *("null", "true", "false", "-1", "0", "1", "2", "3", "5", "9", "10", "1.5", "3.0", "1e0", "-0", "0.0", "0.25"),
    *("0.5", "2.50", "-0.5", "2.9", "100", "0.05", '""', '"a"', '"b"', '"ab"', '"abc"', '"a\\n"', '"xay"', '"\\""'),
    *('"\\u0061"', '"é"', '"2024-01-01"', '"2024-13-01"', '"a@b.c"', '"1.2.3.4"', "[]", "[1]", "[2]", "[1,1]"),
    *("[1, 2]", '["a"]', "[null]", '[1,"a"]', '["a",1]', "[1,2,3]", "[[1]]", '[{"a":1}]', "{}", '{"a":1}'),
    *('{"a": "a"}', '{"b":1}', '{"a":1,"b":2}', '{"a": null}', '{"ab":1}', '{"a":1,"b":"a","c":3}', '{"a":{"a":1}}'),
    *('{"c":1}', '{"a":1,"c":2}', '{"a":[1]}', '{"a":1,"a":"x"}', '{"a":1,"b":2,"a":null}'),
]


def random_schema(rng: random.Random, depth: int) -> Any:
    """A schema of a few keywords that belong together, or of any."""
    if depth == 0:
        simple = [{}, True, False, {"const": 1}, {"enum": [1, "a"]}, {"minimum": 2}, {"maxLength": 1}]
        return rng.choice([*simple, *({"type": t} for t in ("integer", "string", "null", "object", "array", "number"))])

    def sub() -> Any:
        return random_schema(rng, depth - 1)

    def subs() -> list[Any]:
        return [sub() for _ in range(rng.randint(1, 3))]

    numbers = {
        "minimum": lambda: rng.choice([0, 2, 2.5]),
        "maximum": lambda: rng.choice([2, 5, 0.5]),
        "exclusiveMinimum": lambda: rng.choice([0, 2]),
        "exclusiveMaximum": lambda: 3,
        "multipleOf": lambda: rng.choice([2, 3, 0.5]),
    }
    strings = {
        "minLength": lambda: rng.choice([0, 1, 2]),
        "maxLength": lambda: rng.choice([0, 1, 2]),
        "pattern": lambda: rng.choice(["^[ab]+$", "a", "^a", "b$", "^a|b$", "^.$", "^(a|b)$"]),
        "format": lambda: rng.choice(["date", "email", "ipv4"]),
    }
    arrays = {
        "items": sub,
        "prefixItems": subs,
        "minItems": lambda: rng.choice([0, 1, 2]),
        "maxItems": lambda: rng.choice([0, 1, 2]),
        "uniqueItems": lambda: rng.choice([True, False]),
        "contains": sub,
        "minContains": lambda: rng.choice([0, 2]),
        "unevaluatedItems": sub,
        "additionalItems": sub,
    }
    objects = {
        "properties": lambda: {k: sub() for k in rng.sample("abc", rng.randint(0, 2))},
        "required": lambda: rng.sample("abc", rng.randint(0, 2)),
        "additionalProperties": lambda: rng.choice([True, False, sub()]),
        "patternProperties": lambda: {rng.choice(["^a$", "a", "^[ab]$", "b"]): sub()},
        "propertyNames": lambda: rng.choice([{"maxLength": 1}, {"enum": ["a", "b"]}, {"pattern": "^a$"}, False]),
        "minProperties": lambda: rng.choice([0, 1, 2]),
        "maxProperties": lambda: rng.choice([0, 1]),
        "dependentRequired": lambda: {"a": ["b"]},
        "dependentSchemas": lambda: {"a": sub()},
        "dependencies": lambda: {"a": sub()},
        "unevaluatedProperties": sub,
    }
    any_kind = {
        "enum": lambda: rng.choice([[1, 2], ["a", "b"], [None, {"a": 1}]]),
        "const": lambda: rng.choice([1, "a", {"a": 1}, None, [1]]),
        "anyOf": subs,
        "oneOf": subs,
        "allOf": subs,
        "not": sub,
        "if": sub,
        "then": sub,
        "$ref": lambda: "#/$defs/x",
    }
    kinds = [(numbers, "integer"), (numbers, "number"), (strings, "string"), (arrays, "array"), (objects, "object")]
    keywords, kind = rng.choice(
        [*kinds, (any_kind, None), ({**numbers, **strings, **arrays, **objects, **any_kind}, None)]
    )
    chosen = rng.sample(sorted(keywords), rng.randint(1, 3))
    schema = {k: keywords[k]() for k in chosen}  # type: ignore[operator]
    if kind is not None and rng.random() < 0.85:
        schema["type"] = rng.choice([kind, kind, kind, [kind, "null"]])
    return schema


@pytest.mark.parametrize(("name", "count"), [("llguidance", 1500), ("outlines", 150), ("xgrammar", 500)])
def test_no_random_schema_is_widened(name: str, count: int) -> None:
    """Whatever a backend takes is valid; the other way round it may be narrower (order of properties, spellings)."""
    made = make_guided.backend(name)
    rng = random.Random(20)
    held = documents = taken = 0
    for _ in range(count):
        schema = random_schema(rng, rng.choice([1, 1, 2]))
        if '"$ref"' in json.dumps(schema):
            schema["$defs"] = {"x": random_schema(rng, 0)}
        params = GuidedDecodingParams(json=schema)
        try:
            if made.unsupported(params):
                continue
            grammar = made.compile(params)
        except RequestError:
            continue
        held += 1
        validator = jsonschema.Draft202012Validator(
            schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
        )
        for text in TEXTS:
            valid, took = validator.is_valid(json.loads(text)), make_guided.takes(grammar, text)
            assert valid or not took, (schema, text)
            documents += valid
            taken += valid and took
    getattr(made, "close", lambda: None)()
    assert held > count // 20 and taken > 0.5 * documents


# ---- what backends share


def test_subschemas_know_names_from_keywords() -> None:
    schema = {"properties": {"not": {"enum": [{"if": 1}]}, "b": {"items": [{"const": 1}]}}, "anyOf": [{"$ref": "#"}]}
    assert {tuple(sorted(s)) for s in subschemas(schema)} == {
        ("anyOf", "properties"),
        ("enum",),
        ("items",),
        ("const",),
        ("$ref",),
    }


def test_deep_schema_is_refused() -> None:
    schema: Any = {}
    for _ in range(1000):
        schema = {"items": schema}
    with pytest.raises(RequestError, match="nested deeper"):
        read_schema(GuidedDecodingParams(json=schema))


@pytest.mark.parametrize(
    ("pattern", "exact"),
    [
        ("^ab+$", "ab+"),
        (r"a\$", r"a\$"),
        ("a.c", "a[^\\n\\r]c"),
        (r"(?:a|b){1,3}\.", r"(?:a|b){1,3}\."),
        ("(?=a)b", None),
        ("(?i)b", None),
        (r"\bab", None),
        (r"(a)\1", None),
        ("a^b", None),
        ("a++", None),
        ("(*a)", None),
        ("[]a]", None),
        (r"\p{L}", None),
    ],
)
def test_exact_regex(pattern: str, exact: str | None) -> None:
    assert exact_regex(pattern) == exact


def test_a_search_is_anchored_only_if_both_ends_are() -> None:
    assert [p for p in ("^a$", "^(a|b)$", "^a", "a$", "^a|b$", r"^a\$", "a") if is_anchored(p)] == ["^a$", "^(a|b)$"]
