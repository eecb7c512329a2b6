"""JSON-schema keywords, one by one: a backend either holds a keyword (takes valid, refuses invalid documents) or names it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from core.errors import RequestError
from core.interfaces.guided import Vocabulary
from core.sampling_params import GuidedDecodingParams
from core.text.token_bytes import token_bytes
from plugins.guided.constraint import read_schema, subschemas
from plugins.guided.llguidance import LLGuidanceBackend
from plugins.guided.outlines import OutlinesBackend

# keyword, schema, a valid document, an invalid one
KEYWORDS: list[tuple[str, Any, Any, Any]] = [
    ("type", {"type": "integer"}, 3, "a"),
    ("enum", {"enum": [1, "a"]}, "a", "b"),
    ("const", {"const": {"a": 1}}, {"a": 1}, {"a": 2}),
    ("minimum", {"type": "integer", "minimum": 3}, 3, 2),
    ("maximum", {"type": "integer", "maximum": 3}, 3, 4),
    ("exclusiveMinimum", {"type": "integer", "exclusiveMinimum": 3}, 4, 3),
    ("exclusiveMaximum", {"type": "integer", "exclusiveMaximum": 3}, 2, 3),
    ("multipleOf", {"type": "integer", "multipleOf": 3}, 9, 10),
    ("minLength", {"type": "string", "minLength": 2}, "ab", "a"),
    ("maxLength", {"type": "string", "maxLength": 2}, "ab", "abc"),
    ("pattern", {"type": "string", "pattern": "^[ab]+$"}, "abba", "abc"),
    ("format", {"type": "string", "format": "date"}, "2024-02-29", "2024-13-01"),
    ("format:ipv4", {"type": "string", "format": "ipv4"}, "10.0.0.1", "10.0.0"),
    ("items", {"type": "array", "items": {"type": "null"}}, [None], [1]),
    ("prefixItems", {"type": "array", "prefixItems": [{"type": "null"}], "items": False}, [None], [1]),
    ("minItems", {"type": "array", "items": {"type": "null"}, "minItems": 1}, [None], []),
    ("maxItems", {"type": "array", "items": {"type": "null"}, "maxItems": 1}, [None], [None, None]),
    ("uniqueItems", {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, [1, 2], [1, 1]),
    ("contains", {"type": "array", "contains": {"const": 1}}, [1], [2]),
    ("minContains", {"type": "array", "contains": {"const": 1}, "minContains": 2}, [1, 1], [1]),
    ("properties", {"type": "object", "properties": {"a": {"type": "null"}}}, {"a": None}, {"a": 1}),
    ("required", {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"]}, {"a": None}, {}),
    ("required of others", {"type": "object", "required": ["a"]}, {"a": 1}, {}),
    ("additionalProperties", {"type": "object", "properties": {}, "additionalProperties": False}, {}, {"a": 1}),
    (
        "additionalProperties of a type",
        {"type": "object", "additionalProperties": {"type": "null"}},
        {"b": None},
        {"b": 1},
    ),
    ("patternProperties", {"type": "object", "patternProperties": {"^a$": {"type": "null"}}}, {"a": None}, {"a": 1}),
    ("propertyNames", {"type": "object", "propertyNames": {"maxLength": 1}}, {"a": 1}, {"ab": 1}),
    ("minProperties", {"type": "object", "minProperties": 1}, {"a": 1}, {}),
    ("maxProperties", {"type": "object", "maxProperties": 1}, {"a": 1}, {"a": 1, "b": 2}),
    ("dependentRequired", {"type": "object", "dependentRequired": {"a": ["b"]}}, {"a": 1, "b": 1}, {"a": 1}),
    (
        "dependentSchemas",
        {"type": "object", "dependentSchemas": {"a": {"required": ["b"]}}},
        {"a": 1, "b": 1},
        {"a": 1},
    ),
    ("anyOf", {"anyOf": [{"type": "null"}, {"type": "integer"}]}, 1, "a"),
    ("oneOf", {"oneOf": [{"type": "null"}, {"type": "integer"}]}, 1, "a"),
    ("oneOf that overlaps", {"oneOf": [{"type": "number"}, {"type": "integer"}]}, 1.5, 1),
    ("allOf", {"allOf": [{"type": "integer"}, {"minimum": 3}]}, 3, 2),
    ("not", {"type": "integer", "not": {"const": 1}}, 2, 1),
    ("if", {"if": {"const": 1}, "then": False}, 2, 1),
    ("$ref", {"$ref": "#/$defs/a", "$defs": {"a": {"type": "null"}}}, None, 1),
    ("$ref beside others", {"$ref": "#/$defs/a", "maximum": 3, "$defs": {"a": {"type": "integer"}}}, 3, 4),
    ("$dynamicRef", {"$dynamicRef": "#x", "$defs": {"a": {"$dynamicAnchor": "x", "type": "null"}}}, None, 1),
    ("unevaluatedProperties", {"type": "object", "unevaluatedProperties": False}, {}, {"a": 1}),
    ("unevaluatedItems", {"type": "array", "unevaluatedItems": False}, [], [1]),
    ("keywords without a type", {"maxLength": 2}, 12345, "abc"),
    ("several types", {"type": ["string", "null"], "maxLength": 2}, None, "abc"),
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=260,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["aa"], trainer)
    return tokenizer


@pytest.fixture(scope="module", params=[LLGuidanceBackend, OutlinesBackend], ids=["llguidance", "outlines"])
def backend(request: Any, tokenizer: Tokenizer) -> Any:
    size = tokenizer.get_vocab_size()
    return request.param(Vocabulary(token_bytes(tokenizer, frozenset({0}), size), (0,), size, None))


def takes(grammar: Any, tokenizer: Tokenizer, text: str) -> bool:
    matcher = grammar.matcher()
    return all(matcher.accept(t) for t in tokenizer.encode(text).ids) and matcher.accept(0)


@pytest.mark.parametrize(("keyword", "schema", "valid", "invalid"), KEYWORDS, ids=[k[0] for k in KEYWORDS])
def test_keyword_is_held_or_named(
    backend: Any, tokenizer: Tokenizer, keyword: str, schema: Any, valid: Any, invalid: Any
) -> None:
    params = GuidedDecodingParams(json=schema)
    named = backend.unsupported(params)
    if not named:
        try:
            grammar = backend.compile(params)
        except RequestError as error:
            assert "not accepted" in str(error)
            return
        for separators in ((",", ":"), (", ", ": ")):
            assert takes(grammar, tokenizer, json.dumps(valid, separators=separators))
            assert not takes(grammar, tokenizer, json.dumps(invalid, separators=separators))
    else:
        assert set(named) <= {k for s in subschemas(schema) for k in s}


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
