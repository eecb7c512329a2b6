"""`strict: true` where the model may choose: text is free until a call opens, and its arguments follow the schema."""

from __future__ import annotations

import json

import httpx
import openai
import pytest

ASK = [{"role": "user", "content": "What is the weather in Oslo?"}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Paris"]}, "days": {"type": "integer", "minimum": 2, "maximum": 2}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
FUNCTION = {"name": "get_weather", "description": "Get the weather of a city", "parameters": SCHEMA}
LOOSE = {**FUNCTION, "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}


def tools(function, **more):
    return [{"type": "function", "function": {**function, **more}}]


@pytest.fixture
def client(demo_server):
    with openai.OpenAI(
        base_url=f"{demo_server.url}/v1", api_key="none", max_retries=0, _strict_response_validation=True, timeout=60
    ) as c:
        yield c


def test_arguments_follow_the_schema_and_did_not_before(client):
    options = {"model": "demo", "messages": ASK, "temperature": 0, "max_tokens": 100}
    free = client.chat.completions.create(**options, tools=tools(FUNCTION)).choices[0]
    assert json.loads(free.message.tool_calls[0].function.arguments) == {"city": "Oslo"}
    for stream in (False, True):
        made = client.chat.completions.create(**options, tools=tools(FUNCTION, strict=True), stream=stream)
        if stream:
            chunks = list(made)
            pieces = [c for k in chunks for c in k.choices[0].delta.tool_calls or ()]
            name = "".join(c.function.name or "" for c in pieces)
            arguments = "".join(c.function.arguments or "" for c in pieces)
            reason = chunks[-1].choices[0].finish_reason
        else:
            (call,) = made.choices[0].message.tool_calls
            name, arguments, reason = call.function.name, call.function.arguments, made.choices[0].finish_reason
        value = json.loads(arguments)
        assert (name, reason, value["days"]) == ("get_weather", "tool_calls", 2)
        assert value["city"] in ("Rome", "Paris") and set(value) == {"city", "days"}


def test_text_is_as_free_as_without(client):
    options = {"model": "demo", "messages": [{"role": "user", "content": "Hello"}], "temperature": 0, "max_tokens": 60}
    for function in (FUNCTION, LOOSE):
        plain, strict = (
            client.chat.completions.create(**options, tools=tools(function, strict=s)).choices[0] for s in (False, True)
        )
        assert strict.message.content == plain.message.content and strict.finish_reason == plain.finish_reason
        assert not strict.message.tool_calls


def test_a_tool_that_is_not_strict_stays_open_beside_one_that_is(client):
    other = {**LOOSE, "name": "get_time", "description": "Get the time"}
    answer = client.chat.completions.create(
        model="demo",
        messages=ASK,
        temperature=0,
        max_tokens=100,
        tools=[*tools(LOOSE), *tools({**other, "parameters": SCHEMA}, strict=True)],
    ).choices[0]
    (call,) = answer.message.tool_calls
    assert call.function.name == "get_weather" and json.loads(call.function.arguments) == {"city": "Oslo"}


def test_responses_hold_it_too(client):
    answer = client.responses.create(
        model="demo", input=ASK, temperature=0, tools=[{"type": "function", "strict": True, **FUNCTION}]
    )
    (call,) = [o for o in answer.output if o.type == "function_call"]
    assert json.loads(call.arguments)["days"] == 2


def test_messages_hold_it_too(demo_server):
    anthropic = pytest.importorskip("anthropic", reason="pip install backplane[clients]")
    with anthropic.Anthropic(base_url=demo_server.url, api_key="none", max_retries=0) as claude:
        tool = {"name": "get_weather", "description": FUNCTION["description"], "input_schema": SCHEMA, "strict": True}
        message = claude.messages.create(
            model="demo", max_tokens=100, messages=ASK, tools=[tool], extra_body={"temperature": 0}
        )
    (block,) = [b for b in message.content if b.type == "tool_use"]
    assert block.input["days"] == 2 and block.input["city"] in ("Rome", "Paris")


def test_what_cannot_be_held_is_refused_by_name(client, start_server):
    bad = {**SCHEMA, "properties": {"a": {"type": "array", "uniqueItems": True}}, "unevaluatedProperties": False}
    with pytest.raises(openai.BadRequestError, match="unevaluatedProperties"):
        client.chat.completions.create(
            model="demo", messages=ASK, tools=tools({**FUNCTION, "parameters": bad}, strict=True)
        )
    server = start_server(engine={"tool_call_parser": "gpt_oss", "num_blocks": 512})
    body = {"messages": ASK, "max_tokens": 30, "tools": [*tools(LOOSE), *tools({**FUNCTION, "name": "f"}, strict=True)]}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body).json()["error"]
    assert (answer["param"], answer["code"]) == ("tools[1].function.strict", "unsupported_parameter")
    assert "'gpt_oss'" in answer["message"]
    body["tool_choice"] = "required"
    assert httpx.post(f"{server.url}/v1/chat/completions", json=body).status_code == 200
    tool = {"type": "function", "strict": True, **FUNCTION}
    answer = httpx.post(f"{server.url}/v1/responses", json={"input": "a", "tools": [tool]}).json()["error"]
    assert answer["param"] == "tools[0].strict"
