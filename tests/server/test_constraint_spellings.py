"""Every spelling of a constraint becomes the same thing, and what only looks like one is an error that names it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from core.sampling_params import GuidedDecodingParams
from server.errors import ApiError
from server.openai.params import check_keys, guided
from server.openai.schema import ChatCompletionRequest

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
TAG: dict[str, Any] = {
    "type": "structural_tag",
    "format": {"type": "triggered_tags", "triggers": ["<f"], "tags": []},
}
OLD_TAG = {
    "type": "structural_tag",
    "structures": [{"begin": "<f>", "schema": SCHEMA, "end": "</f>"}],
    "triggers": ["<f"],
}


def understood(**body: Any) -> GuidedDecodingParams | None:
    raw = msgspec.json.encode({"model": "m", "messages": [], **body})
    check_keys(raw, ChatCompletionRequest)
    return guided(msgspec.json.decode(raw, type=ChatCompletionRequest))


@pytest.mark.parametrize(
    ("body", "params"),
    [
        ({}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, {"json_object": True}),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, {"json": SCHEMA}),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "strict": True, "schema": SCHEMA},
                }
            },
            {"json": SCHEMA},
        ),
        ({"response_format": TAG}, {"structural_tag": TAG}),
        ({"response_format": OLD_TAG}, {"structural_tag": OLD_TAG}),
        ({"guided_json": SCHEMA}, {"json": SCHEMA}),
        ({"guided_json": "{}"}, {"json": "{}"}),
        ({"guided_json_object": True}, {"json_object": True}),
        ({"guided_regex": "a+"}, {"regex": "a+"}),
        ({"guided_choice": ["a", "b"]}, {"choice": ("a", "b")}),
        ({"guided_grammar": "start: A"}, {"grammar": "start: A"}),
        ({"structural_tag": "{}"}, {"structural_tag": "{}"}),
        ({"guided_json": SCHEMA, "guided_whitespace_pattern": ""}, {"json": SCHEMA, "whitespace_pattern": ""}),
        ({"guided_regex": "a", "guided_decoding_backend": "outlines"}, {"regex": "a", "backend": "outlines"}),
        ({"structured_outputs": {"json": SCHEMA}}, {"json": SCHEMA}),
        ({"structured_outputs": {"json_object": True}}, {"json_object": True}),
        ({"structured_outputs": {"regex": "a"}}, {"regex": "a"}),
        ({"structured_outputs": {"choice": ["a"]}}, {"choice": ("a",)}),
        ({"structured_outputs": {"grammar": "start: A"}}, {"grammar": "start: A"}),
        ({"structured_outputs": {"structural_tag": TAG}}, {"structural_tag": TAG}),
        (
            {"structured_outputs": {"json": SCHEMA, "whitespace_pattern": " ?", "backend": "llguidance"}},
            {"json": SCHEMA, "whitespace_pattern": " ?", "backend": "llguidance"},
        ),
    ],
    ids=str,
)
def test_spelling(body: dict[str, Any], params: dict[str, Any] | None) -> None:
    assert understood(**body) == (None if params is None else GuidedDecodingParams(**params))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"guided_jsn": SCHEMA}, "guided_jsn .* 'guided_json'"),
        ({"guided_json_schema": SCHEMA}, "guided_json_schema"),
        ({"json_schema": SCHEMA}, "json_schema"),
        ({"responseFormat": {}}, "responseFormat"),
        ({"structured_output": {}}, "structured_output"),
        ({"grammar": "a"}, "grammar"),
        ({"structured_outputs": {"schema": SCHEMA}}, "structured_outputs.schema"),
        ({"structured_outputs": {}}, "holds none"),
        ({"response_format": {"type": "json_object", "json_schema": SCHEMA}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "schema": SCHEMA}}, "response_format.schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA, "regex": "a"}}},
            "response_format.json_schema.regex",
        ),
        ({"response_format": {**TAG, "tags": []}}, "response_format.tags"),
        ({"response_format": {"type": "regex", "pattern": "a"}}, "'regex' is not one of"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "exclude each other"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "exclude each other"),
        ({"guided_whitespace_pattern": " "}, "needs guided_json"),
        ({"guided_regex": "a", "guided_whitespace_pattern": " "}, "whitespace_pattern has no effect with regex"),
        ({"guided_choice": []}, "choice is empty"),
    ],
    ids=str,
)
def test_what_only_looks_like_one(body: dict[str, Any], words: str) -> None:
    with pytest.raises(ApiError, match=words):
        understood(**body)
