"""The demo model behind a real server calls tools and fills schemas, through the openai client, streamed and not."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys

import pytest
from openai import BadRequestError, OpenAI

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
ASK = [{"role": "user", "content": "What is the weather in Oslo?"}]


@pytest.fixture(scope="module")
def demo():
    """`engine serve` with no model, as the README says."""
    command = [sys.executable, "-m", "server", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        url = next((m[1] for line in server.stdout if (m := re.search(r"^serving .* on (\S+)", line))), None)
        assert url, "the server did not start"
        with OpenAI(base_url=f"{url}/v1", api_key="none") as client:
            yield client
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=20)
    assert server.returncode == 0


def test_a_tool_call_whole(demo):
    answer = demo.chat.completions.create(model="demo", messages=ASK, tools=[WEATHER], temperature=0).choices[0]
    assert answer.finish_reason == "tool_calls"
    (call,) = answer.message.tool_calls
    assert call.function.name == "get_weather" and json.loads(call.function.arguments) == {"city": "Oslo"}


def test_a_tool_call_streamed(demo):
    name, arguments, reason = "", "", None
    for chunk in demo.chat.completions.create(model="demo", messages=ASK, tools=[WEATHER], temperature=0, stream=True):
        choice = chunk.choices[0]
        for call in choice.delta.tool_calls or []:
            name += call.function.name or ""
            arguments += call.function.arguments or ""
        reason = choice.finish_reason or reason
    assert (name, json.loads(arguments), reason) == ("get_weather", {"city": "Oslo"}, "tool_calls")


def test_a_named_tool_is_called_whatever_was_asked(demo):
    answer = demo.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": "Hello"}],
        tools=[WEATHER],
        temperature=0,
        max_tokens=60,
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
    ).choices[0]
    assert answer.message.tool_calls[0].function.name == "get_weather"


def test_the_answer_after_a_tool(demo):
    messages = [
        *ASK,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": '{"temperature": 12, "sky": "sunny"}'},
    ]
    answer = demo.chat.completions.create(model="demo", messages=messages, tools=[WEATHER], temperature=0).choices[0]
    assert answer.message.content == "The temperature is 12 and the sky is sunny."


def test_a_schema_is_filled(demo):
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    text = "Mila is 44 years old and lives in Porto. Extract name and age as JSON."
    response_format = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": schema}}
    for stream in (False, True):
        made = demo.chat.completions.create(
            model="demo",
            messages=[{"role": "user", "content": text}],
            temperature=0,
            response_format=response_format,
            stream=stream,
        )
        content = "".join(c.choices[0].delta.content or "" for c in made) if stream else made.choices[0].message.content
        assert json.loads(content) == {"name": "Mila", "age": 44}


def test_what_no_backend_holds_is_named(demo):
    schema = {
        "type": "object",
        "properties": {"a": {"type": "array", "uniqueItems": True}},
        "unevaluatedProperties": False,
    }
    with pytest.raises(BadRequestError, match="unevaluatedProperties"):
        demo.chat.completions.create(
            model="demo",
            messages=ASK,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        )


def test_a_structural_tag_in_the_newer_spelling(demo):
    schema = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]}
    tag = {
        "type": "tag",
        "begin": "<city>",
        "content": {"type": "json_schema", "json_schema": schema},
        "end": "</city>",
    }
    answer = demo.chat.completions.create(
        model="demo",
        messages=ASK,
        temperature=0,
        extra_body={"response_format": {"type": "structural_tag", "format": tag}},
    ).choices[0]
    text = answer.message.content
    assert text.startswith("<city>") and text.endswith("</city>") and answer.finish_reason == "stop"
    assert json.loads(text[6:-7])["city"] in ("Oslo", "Rome")


def test_each_request_may_name_its_backend(demo):
    for backend in ("llguidance", "outlines", "xgrammar"):
        answer = demo.chat.completions.create(
            model="demo",
            messages=ASK,
            temperature=0,
            extra_body={"guided_choice": ["sunny", "rainy"], "guided_decoding_backend": backend},
        )
        assert answer.choices[0].message.content in ("sunny", "rainy")


def test_what_the_default_does_not_hold_falls_to_another_backend(demo):
    schema = {"type": "object", "propertyNames": {"maxLength": 2}, "minProperties": 1, "maxProperties": 2}
    answer = demo.chat.completions.create(
        model="demo", messages=ASK, temperature=1, seed=1, max_tokens=200, extra_body={"guided_json": schema}
    ).choices[0]
    if answer.finish_reason == "stop":
        value = json.loads(answer.message.content)
        assert 1 <= len(value) <= 2 and all(len(k) <= 2 for k in value)
    assert answer.message.content.startswith("{")
