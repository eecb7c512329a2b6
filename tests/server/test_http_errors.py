"""What a client that errs is told: status, type, code, param. Nothing of it reaches the engine."""

from __future__ import annotations

import gzip
import json

import httpx
import pytest

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
BEAMS = {"use_beam_search": True}
USER = [{"role": "user", "content": "hello"}]

# path, body, status, code, param, words of the message
TABLE = [
    (TEXT, {"model": "nope", "prompt": "a"}, 404, "model_not_found", "model", "'tiny', 'also-tiny'"),
    (TEXT, {"model": "tiny"}, 400, "missing_required_parameter", "prompt", "required"),
    (TEXT, {"prompt": ""}, 400, "invalid_value", "prompt", "empty"),
    (TEXT, {"prompt": []}, 400, "invalid_value", "prompt", "empty"),
    (TEXT, {"prompt": [[1], []]}, 400, "invalid_value", "prompt[1]", "empty"),
    (TEXT, {"prompt": [1, 99999]}, 400, "invalid_value", "prompt", "99999"),
    (TEXT, {"prompt": [1, "a"]}, 400, "invalid_type", "prompt", "mixes"),
    (TEXT, {"prompt": [1.5]}, 400, "invalid_type", "prompt[0]", ""),
    (TEXT, {"prompt": "a", "max_tokens": 0}, 400, "invalid_value", "max_tokens", "at least 1"),
    (TEXT, {"prompt": "a", "max_tokens": -1}, 400, "invalid_value", "max_tokens", "at least 1"),
    (TEXT, {"prompt": "a", "max_tokens": "5"}, 400, "invalid_type", "max_tokens", "int"),
    (TEXT, {"prompt": "a", "temperature": -1}, 400, "invalid_value", "temperature", "0"),
    (TEXT, {"prompt": "a", "temperature": "hot"}, 400, "invalid_type", "temperature", "float"),
    (TEXT, {"prompt": "a", "top_p": 0}, 400, "invalid_value", "top_p", "above 0"),
    (TEXT, {"prompt": "a", "top_k": -5}, 400, "invalid_value", "top_k", "positive"),
    (TEXT, {"prompt": "a", "top_k": 2**64 - 1}, 400, "invalid_value", "top_k", "2147483647"),
    (TEXT, {"prompt": "a", "min_tokens": 2**90}, 400, "invalid_value", "min_tokens", "2147483647"),
    (TEXT, {"prompt": "a", "max_tokens": 2**90}, 400, "invalid_value", "max_tokens", "2147483647"),
    (TEXT, {"prompt": "a", "priority": -(2**90)}, 400, "invalid_value", "priority", "2147483647"),
    (TEXT, {"prompt": "a", "guided_json": {"const": 2**90}}, 400, "invalid_value", "guided_decoding", "2**64"),
    (TEXT, {"prompt": "a", "n": 0}, 400, "invalid_value", "n", "from 1"),
    (TEXT, {"prompt": "a", "n": 100000}, 400, "invalid_value", "n", "128"),
    (TEXT, {"prompt": "a", "best_of": 2, "stream": True}, 400, "invalid_value", "best_of", "stream"),
    (TEXT, {"prompt": "a", "stop": [""]}, 400, "invalid_value", "stop", "empty"),
    (TEXT, {"prompt": "a", "logprobs": 1000}, 400, "invalid_value", "logprobs", "20"),
    (TEXT, {"prompt": "a", "logit_bias": {"x": 1}}, 400, "invalid_value", "logit_bias", "'x'"),
    (TEXT, {"prompt": "a", "logit_bias": {"100000": 1}}, 400, "invalid_value", "logit_bias", "100000"),
    (TEXT, {"prompt": "a", "suffix": "b"}, 400, "unsupported_parameter", "suffix", "middle"),
    (TEXT, {"prompt": "a", **BEAMS, "n": 11}, 400, "invalid_value", "n", "10 beams"),
    (TEXT, {"prompt": "a", **BEAMS, "stop": "x"}, 400, "invalid_value", "stop", "leave out one"),
    (
        TEXT,
        {"prompt": "a", **BEAMS, "repetition_penalty": 1.2},
        400,
        "invalid_value",
        "repetition_penalty",
        "no effect",
    ),
    (
        TEXT,
        {"prompt": "a", **BEAMS, "prompt_logprobs": 1, "echo": True},
        400,
        "invalid_value",
        "prompt_logprobs",
        "echo",
    ),
    (TEXT, {"prompt": "a", **BEAMS, "guided_regex": "a"}, 400, "invalid_value", "use_beam_search", "no constraint"),
    (TEXT, {"prompt": "a", "length_penalty": 2}, 400, "invalid_value", "length_penalty", "use_beam_search: true"),
    (TEXT, {"prompt": "a", "early_stopping": True}, 400, "invalid_value", "early_stopping", "use_beam_search: true"),
    (TEXT, {"prompt": "a", "truncate_prompt_tokens": 0}, 400, "invalid_value", "truncate_prompt_tokens", "from 1 to"),
    (
        TEXT,
        {"prompt": "a", "truncate_prompt_tokens": 2**90},
        400,
        "invalid_value",
        "truncate_prompt_tokens",
        "2147483647",
    ),
    (TEXT, {"prompt": "a", "allowed_token_ids": []}, 400, "invalid_value", "allowed_token_ids", "at least one"),
    (TEXT, {"prompt": "a", "allowed_token_ids": [5, 2**90]}, 400, "invalid_value", "allowed_token_ids", "not one of"),
    (
        TEXT,
        {"prompt": "a", "logits_processors": ["x"]},
        400,
        "unsupported_parameter",
        "logits_processors",
        "logit_bias",
    ),
    (
        TEXT,
        {"prompt": "a", "stream_options": {"include_usage": True}},
        400,
        "invalid_value",
        "stream_options",
        "stream",
    ),
    (TEXT, {"prompt": "a", "guided_jsn": {}}, 400, "unknown_parameter", "guided_jsn", "'guided_json'"),
    (TEXT, {"prompt": "a", "responseFormat": {}}, 400, "unknown_parameter", "responseFormat", "'response_format'"),
    (
        TEXT,
        {"prompt": "a", "structured_output": {}},
        400,
        "unknown_parameter",
        "structured_output",
        "structured_outputs",
    ),
    (
        TEXT,
        {"prompt": "a", "structured_outputs": {"jsn": {}}},
        400,
        "unknown_parameter",
        "structured_outputs.jsn",
        "json",
    ),
    (
        TEXT,
        {"prompt": "a", "guided_regex": "a", "guided_choice": ["b"]},
        400,
        "invalid_value",
        "guided_choice",
        "exclude",
    ),
    (TEXT, {"prompt": "a", "guided_choice": []}, 400, "invalid_value", "guided_choice", "empty"),
    (TEXT, {"prompt": [5] * 5000}, 400, "context_length_exceeded", "prompt", "5000"),
    (CHAT, {}, 400, "missing_required_parameter", "messages", "required"),
    (CHAT, {"messages": []}, 400, "invalid_value", "messages", "empty"),
    (CHAT, {"messages": "hello"}, 400, "invalid_type", "messages", "array"),
    (CHAT, {"messages": [{"content": "x"}]}, 400, "missing_required_parameter", "messages[0].role", "required"),
    (CHAT, {"messages": [{"role": "wizard", "content": "x"}]}, 400, "invalid_value", "messages[0].role", "wizard"),
    (CHAT, {"messages": [{"role": "user"}]}, 400, "missing_required_parameter", "messages[0].content", "required"),
    (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        400,
        "unsupported_parameter",
        "messages[0].content[0].type",
        "image_url",
    ),
    (CHAT, {"messages": USER, "top_logprobs": 2}, 400, "invalid_value", "top_logprobs", "logprobs"),
    (CHAT, {"messages": USER, "logprobs": True, "top_logprobs": 99}, 400, "invalid_value", "top_logprobs", "20"),
    (CHAT, {"messages": USER, "functions": []}, 400, "unsupported_parameter", "functions", "tools"),
    (CHAT, {"messages": USER, "modalities": ["audio"]}, 400, "unsupported_parameter", "modalities", "text"),
    (CHAT, {"messages": USER, "chat_template": "{{ x }}"}, 400, "unsupported_parameter", "chat_template", "template"),
    (CHAT, {"messages": USER, "tool_choice": "auto"}, 400, "invalid_value", "tool_choice", "tools"),
    (
        CHAT,
        {"messages": USER, "tool_choice": {"type": "function", "function": {"name": "f"}}},
        400,
        "invalid_value",
        "tool_choice",
        "'f'",
    ),
    (CHAT, {"messages": USER, "response_format": {}}, 400, "missing_required_parameter", "response_format.type", ""),
    (CHAT, {"messages": USER, "response_format": {"type": "xml"}}, 400, "invalid_value", "response_format.type", "xml"),
    (
        CHAT,
        {"messages": USER, "response_format": {"type": "json_schema"}},
        400,
        "missing_required_parameter",
        "response_format.json_schema.schema",
        "schema",
    ),
    (CHAT, {"messages": USER, "max_completion_tokens": 0}, 400, "invalid_value", "max_completion_tokens", "at least 1"),
    (
        CHAT,
        {"messages": USER, "add_generation_prompt": True, "continue_final_message": True},
        400,
        "invalid_value",
        "continue_final_message",
        "exclude",
    ),
    ("/detokenize", {"tokens": [-1]}, 400, "invalid_value", "tokens", "-1"),
    ("/tokenize", {}, 400, "missing_required_parameter", "prompt", "either"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body", "status", "code", "param", "words"), TABLE)
def test_error_table(server, path, body, status, code, param, words, stream):
    if stream and "completions" in path and "stream_options" not in body:
        body = {**body, "stream": True}
    answer = httpx.post(server.url + path, json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param), error
    assert words in error["message"] and set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"not json", "invalid_json"),
        (b"[]", "invalid_type"),
        (b'{"prompt": "\xff\xfe"}', "invalid_json"),
        (b'{"prompt": "a", "temperature": NaN}', "invalid_json"),
        (b'{"prompt": "\\ud800"}', "invalid_json"),
        (b"null", "invalid_type"),
        (b"[" * 100_000, None),
        (b'{"prompt": "a", "temperature": 1e999}', None),
        (b'{"prompt": "a", "seed": 123456789012345678901234567890}', None),
    ],
)
def test_bodies_that_are_no_request(server, content, code):
    for path in (TEXT, CHAT):
        answer = httpx.post(server.url + path, content=content)
        assert answer.status_code == 400, answer.text
        if path == TEXT and code:
            assert answer.json()["error"]["code"] == code


def test_body_over_the_limit(server):
    answer = httpx.post(server.url + TEXT, json={"prompt": "a" * 1_100_000})
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "body_too_large"

    def pieces():
        for _ in range(20):
            yield b" " * 100_000

    assert httpx.post(server.url + TEXT, content=pieces()).status_code == 413


def test_routes_and_methods(server):
    assert httpx.get(server.url + "/v1/nothing").json()["error"]["code"] == "not_found"
    answer = httpx.get(server.url + TEXT)
    assert answer.status_code == 405 and answer.json()["error"]["code"] == "method_not_allowed"
    for path in ("/health", "/live", "/ready"):
        assert httpx.head(server.url + path).status_code == 200
    options = httpx.options(server.url + TEXT)
    assert options.status_code == 204 and "POST" in options.headers["allow"]


@pytest.mark.parametrize("path", [TEXT, CHAT, "/v1/embeddings", "/v1/messages"])
def test_a_body_that_is_packed_is_refused_by_name(server, path):
    packed = gzip.compress(json.dumps({"prompt": "a"}).encode())
    answer = httpx.post(server.url + path, content=packed, headers={"content-encoding": "gzip"})
    assert answer.status_code == 415 and "content-encoding 'gzip' is not supported" in answer.json()["error"]["message"]
    assert httpx.post(server.url + TEXT, json={"prompt": "a"}, headers={"content-encoding": "identity"}).is_success


def test_a_wrong_base_url_is_told_the_right_one(server):
    for method, path, meant in (
        ("POST", "/chat/completions", CHAT),
        ("GET", "/models", "/v1/models"),
        ("POST", "/v1/v1/messages", "/v1/messages"),
    ):
        error = httpx.request(method, server.url + path).json()["error"]
        assert f"did you mean {meant}?" in error["message"], path
    assert "did you mean" not in httpx.get(server.url + "/v1/nonsense").json()["error"]["message"]


def test_a_prompt_that_is_far_too_long_is_refused_from_its_beginning(server):
    text = "the engine serves " * 50_000
    for path, body in ((TEXT, {"prompt": text}), (CHAT, {"messages": [{"role": "user", "content": text}]})):
        answer = httpx.post(server.url + path, json=body, timeout=60)
        error = answer.json()["error"]
        assert answer.status_code == 400 and error["code"] == "context_length_exceeded", error
        assert "has more than" in error["message"] and "takes 4096" in error["message"]
    # what is long in characters and short in tokens is looked at whole
    assert len(long := "<|assistant|>" * 3000) > 8 * 4096
    assert httpx.post(server.url + TEXT, json={"prompt": long, "max_tokens": 1}, timeout=60).is_success
    whole = httpx.post(server.url + "/v1/responses/input_tokens", json={"input": text}, timeout=60)
    assert whole.json()["input_tokens"] > 100_000


def test_the_server_is_well_after_all_this(server):
    server.wait_idle()
    assert httpx.post(server.url + TEXT, json={"prompt": "a", "max_tokens": 1}).status_code == 200
    assert "Traceback" not in server.output
