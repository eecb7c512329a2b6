"""What backends share: reading a constraint, and walking the schemas inside a JSON schema."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from core.errors import RequestError
from core.sampling_params import GuidedDecodingParams

MAX_DEPTH = 100

_SCHEMA = {
    "additionalItems",
    "additionalProperties",
    "contains",
    "else",
    "if",
    "items",
    "not",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
}
_SCHEMA_LIST = {"allOf", "anyOf", "items", "oneOf", "prefixItems"}
_SCHEMA_MAP = {"$defs", "definitions", "dependencies", "dependentSchemas", "patternProperties", "properties"}


def read_schema(constraint: GuidedDecodingParams) -> dict[str, Any]:
    """The JSON schema of a json or json_object constraint, `true` as {}. Raises RequestError."""
    if constraint.json_object:
        return {"type": "object"}
    schema = constraint.json
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"the JSON schema is not valid JSON: {error}", param="guided_json") from None
    if not isinstance(schema, dict | bool):
        raise RequestError(f"a JSON schema is an object or a boolean, not {type(schema).__name__}", param="guided_json")
    if schema is False:
        raise RequestError("the JSON schema false is not accepted: it allows nothing", param="guided_json")
    check_depth(schema)
    return {} if schema is True else schema


def constraint_kind(constraint: GuidedDecodingParams) -> str:
    """Which of the kinds it is: json, json_object, regex, choice, grammar or structural_tag."""
    if constraint.json_object:
        return "json_object"
    kinds = ("json", "regex", "choice", "grammar", "structural_tag")
    return next(k for k in kinds if getattr(constraint, k) is not None)


def check_depth(value: Any) -> None:
    """Raises RequestError for a document nested beyond MAX_DEPTH; the libraries below recurse."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
        ]
        if not level:
            return
    raise RequestError(f"the JSON schema is nested deeper than {MAX_DEPTH} levels", param="guided_json")


def subschemas(schema: Any) -> Iterator[Mapping[str, Any]]:
    """The schema and every schema in it, each once; names of properties are not taken for keywords."""
    stack = [schema]
    while stack:
        node = stack.pop()
        if not isinstance(node, dict):
            continue
        yield node
        for key, value in node.items():
            if key in _SCHEMA and isinstance(value, dict):
                stack.append(value)
            elif key in _SCHEMA_LIST and isinstance(value, list):
                stack.extend(value)
            elif key in _SCHEMA_MAP and isinstance(value, dict):
                stack.extend(value.values())
