"""/v1/responses through the openai client, its types validated strictly, against the demo model in a real server."""

from __future__ import annotations

import asyncio
import json

import httpx
import openai
import pydantic
import pytest

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": False,
}
ASK = "What is the weather in Oslo?"


class Person(pydantic.BaseModel):
    name: str
    age: int
    city: str


PERSON = "Mila is 44 years old and lives in Porto. Extract name, age and city as JSON."


@pytest.fixture
def client(demo_server):
    with openai.OpenAI(
        base_url=f"{demo_server.url}/v1", api_key="x", max_retries=0, timeout=60, _strict_response_validation=True
    ) as c:
        yield c


@pytest.fixture
def tiny(server):
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="x", max_retries=0, timeout=60, _strict_response_validation=True
    ) as c:
        yield c


def test_text(client):
    answer = client.responses.create(
        model="demo",
        input="What is block_size?",
        temperature=0,
        metadata={"a": "b"},
        max_output_tokens=100,
        store=False,
        user="u",
        parallel_tool_calls=False,
        service_tier="auto",
        truncation="disabled",
        prompt_cache_key="k",
        safety_identifier="s",
        reasoning={"effort": "low"},
        include=["reasoning.encrypted_content"],
    )
    assert "block" in answer.output_text and answer.status == "completed"
    assert answer.id.startswith("resp_") and answer.metadata == {"a": "b"} and answer.output[0].id.startswith("msg_")
    assert (answer.store, answer.temperature, answer.parallel_tool_calls, answer.user) == (False, 0.0, False, "u")
    usage = answer.usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens and usage.output_tokens > 3
    for cached in (0, 16):
        again = client.responses.create(model="demo", instructions="You know this engine.", input=PERSON, temperature=0)
        assert again.usage.input_tokens_details.cached_tokens >= cached


def test_the_same_as_chat(client):
    text = client.responses.create(model="demo", instructions="Be short.", input="Hello!", temperature=0).output_text
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hello!"}]
    chat = client.chat.completions.create(model="demo", messages=messages, temperature=0).choices[0].message.content
    assert text == chat


def test_events_of_a_text(client):
    events = list(client.responses.create(model="demo", input="Hello!", temperature=0, stream=True))
    kinds = [e.type for e in events]
    deltas = kinds.count("response.output_text.delta")
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * deltas,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert deltas > 1 and [e.sequence_number for e in events] == list(range(len(events)))
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    final = events[-1].response
    assert text == final.output_text == next(e.text for e in events if e.type == "response.output_text.done")
    assert final.output_text == client.responses.create(model="demo", input="Hello!", temperature=0).output_text
    ids = {e.item_id for e in events if hasattr(e, "item_id")}
    assert ids == {final.output[0].id} and final.usage.output_tokens > 1
    assert {e.response.id for e in events if hasattr(e, "response")} == {final.id}


def test_a_tool_call_and_the_answer_after_it(client):
    first = client.responses.create(model="demo", input=ASK, tools=[WEATHER], temperature=0)
    (call,) = first.output
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "get_weather", {"city": "Oslo"})
    assert first.tools[0].name == "get_weather" and first.tool_choice == "auto"
    items = [{"role": "user", "content": ASK}, *(o.model_dump(exclude_none=True) for o in first.output)]
    items.append({"type": "function_call_output", "call_id": call.call_id, "output": '{"temperature": 7}'})
    second = client.responses.create(model="demo", input=items, tools=[WEATHER], temperature=0)
    assert "7" in second.output_text and second.output[0].type == "message"


def test_events_of_a_tool_call(client):
    events = list(client.responses.create(model="demo", input=ASK, tools=[WEATHER], temperature=0, stream=True))
    kinds = [e.type for e in events]
    deltas = kinds.count("response.function_call_arguments.delta")
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        *["response.function_call_arguments.delta"] * deltas,
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]
    joined = "".join(e.delta for e in events if e.type == "response.function_call_arguments.delta")
    assert json.loads(joined) == {"city": "Oslo"} and events[-1].response.output[0].arguments == joined


@pytest.mark.parametrize(
    "choice",
    [
        "required",
        {"type": "function", "name": "get_weather"},
        {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "get_weather"}]},
    ],
)
def test_tool_choice(client, choice):
    other = {**WEATHER, "name": "other"}
    answer = client.responses.create(
        model="demo", input=ASK, tools=[other, WEATHER], tool_choice=choice, temperature=0, max_output_tokens=80
    )
    assert answer.output[0].type == "function_call"
    if choice != "required":
        assert answer.output[0].name == "get_weather"


def test_tools_are_not_called_when_the_choice_is_none(client):
    answer = client.responses.create(model="demo", input=ASK, tools=[WEATHER], tool_choice="none", temperature=0)
    assert [o.type for o in answer.output] == ["message"]


def test_parse_and_stream_helpers(client):
    parsed = client.responses.parse(model="demo", input=PERSON, text_format=Person, temperature=0)
    assert parsed.output_parsed == Person(name="Mila", age=44, city="Porto")
    with client.responses.stream(model="demo", input=PERSON, text_format=Person, temperature=0) as stream:
        kinds = [e.type for e in stream]
        final = stream.get_final_response()
    assert final.output_parsed == parsed.output_parsed and kinds[-1] == "response.completed"
    with client.responses.stream(model="demo", input=ASK, tools=[WEATHER], temperature=0) as stream:
        snapshots = [e.snapshot for e in stream if e.type == "response.function_call_arguments.delta"]
    assert json.loads(snapshots[-1]) == {"city": "Oslo"}


def test_json_object(client):
    answer = client.responses.create(
        model="demo", input=PERSON, text={"format": {"type": "json_object"}}, temperature=0, max_output_tokens=120
    )
    assert isinstance(json.loads(answer.output_text), dict) and answer.text.format.type == "json_object"


def test_async_clients_side_by_side(demo_server):
    async def main():
        async with openai.AsyncOpenAI(
            base_url=f"{demo_server.url}/v1", api_key="x", max_retries=0, _strict_response_validation=True
        ) as client:

            async def one():
                async with client.responses.stream(model="demo", input="Hello!", temperature=0) as stream:
                    text = "".join([e.delta async for e in stream if e.type == "response.output_text.delta"])
                    return text, (await stream.get_final_response()).output_text

            whole = await client.responses.create(model="demo", input="Hello!", temperature=0)
            parsed = await client.responses.parse(model="demo", input=PERSON, text_format=Person, temperature=0)
            assert parsed.output_parsed.city == "Porto"
            for pair in await asyncio.gather(*(one() for _ in range(8))):
                assert pair == (whole.output_text, whole.output_text)

    asyncio.run(main())


def test_an_answer_cut_short(tiny):
    options = dict(model="tiny", input="the", max_output_tokens=5, extra_body={"ignore_eos": True})
    answer = tiny.responses.create(**options)
    assert answer.status == "incomplete" and answer.incomplete_details.reason == "max_output_tokens"
    assert answer.usage.output_tokens == 5
    last = list(tiny.responses.create(**options, stream=True))[-1]
    assert last.type == "response.incomplete" and last.response.incomplete_details.reason == "max_output_tokens"


def test_logprobs(tiny):
    options = dict(
        model="tiny",
        input="the",
        max_output_tokens=6,
        top_logprobs=2,
        include=["message.output_text.logprobs"],
        temperature=0,
        extra_body={"ignore_eos": True},
    )
    whole = tiny.responses.create(**options).output[0].content[0].logprobs
    assert len(whole) == 6 and all(len(p.top_logprobs) == 2 and p.logprob <= 0 for p in whole)
    events = list(tiny.responses.create(**options, stream=True))
    streamed = [p for e in events if e.type == "response.output_text.delta" for p in e.logprobs]
    assert [p.token for p in streamed] == [p.token for p in whole]
    assert [p.token for p in events[-1].response.output[0].content[0].logprobs] == [p.token for p in whole]


def test_items_become_messages(server):
    items = [
        {"role": "developer", "content": "two"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "three"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "four", "annotations": []}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "five"}]},
    ]
    body = {"instructions": "one", "input": items}
    count = httpx.post(f"{server.url}/v1/responses/input_tokens", json=body).json()
    messages = [
        {"role": "system", "content": "one\n\ntwo"},
        {"role": "user", "content": "three"},
        {"role": "assistant", "content": "four"},
        {"role": "tool", "content": "five"},
    ]
    tokens = httpx.post(f"{server.url}/tokenize", json={"messages": messages}).json()["count"]
    assert count == {"object": "response.input_tokens", "input_tokens": tokens}


MESSAGE = {"role": "user", "content": "a"}
REFUSED = [
    ({"previous_response_id": "resp_1"}, "unsupported_parameter", "previous_response_id", "input"),
    ({"conversation": "c"}, "unsupported_parameter", "conversation", "input"),
    ({"background": True}, "unsupported_parameter", "background", "stored"),
    ({"store": True}, "unsupported_parameter", "store", "stored"),
    ({"prompt": {"id": "p"}}, "unsupported_parameter", "prompt", "templates"),
    ({"truncation": "auto"}, "unsupported_parameter", "truncation", "disabled"),
    ({"max_tool_calls": 1}, "unsupported_parameter", "max_tool_calls", "built-in"),
    ({"tools": [{"type": "web_search"}]}, "unsupported_parameter", "tools[0].type", "web_search"),
    ({"tools": [{**WEATHER, "defer_loading": True}]}, "unsupported_parameter", "tools[0].defer_loading", ""),
    ({"tools": [{"type": "function"}]}, "missing_required_parameter", "tools[0].name", "required"),
    ({"tools": [{**WEATHER, "name": ""}]}, "invalid_value", "tools[0].name", "tools[0].name must"),
    ({"tool_choice": "auto"}, "invalid_value", "tool_choice", "tools"),
    ({"tool_choice": {"type": "web_search"}}, "unsupported_parameter", "tool_choice.type", "web_search"),
    ({"text": {"format": {"type": "xml"}}}, "invalid_value", "text.format.type", "xml"),
    ({"text": {"format": {"type": "json_schema"}}}, "missing_required_parameter", "text.format.schema", "schema"),
    ({"text": {"verbosity": "high"}}, "unsupported_parameter", "text.verbosity", "instructions"),
    ({"reasoning": {"summary": "detailed"}}, "unsupported_parameter", "reasoning.summary", "whole"),
    ({"include": ["file_search_call.results"]}, "unsupported_parameter", "include[0]", "file_search"),
    ({"max_output_tokens": 0}, "invalid_value", "max_output_tokens", "at least 1"),
    ({"top_logprobs": 99}, "invalid_value", "top_logprobs", "20"),
    ({"temperature": -1}, "invalid_value", "temperature", "0"),
    ({"input": []}, "invalid_value", "input", "empty"),
    ({"input": "a b " * 9000}, "context_length_exceeded", "input", "max_model_len"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "unsupported_parameter", "input[0].type", "stored"),
    ({"input": [{"type": "computer_call"}]}, "unsupported_parameter", "input[0].type", "computer_call"),
    ({"input": [MESSAGE, {"role": "wizard", "content": "a"}]}, "invalid_value", "input[1].role", "wizard"),
    (
        {
            "instructions": "i",
            "input": [MESSAGE, {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{"}],
        },
        "invalid_value",
        "input[1].arguments",
        "input[1].arguments is not JSON",
    ),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        "unsupported_parameter",
        "input[0].content[0].type",
        "input_image",
    ),
    ({"mesages": []}, "unknown_parameter", "mesages", "/v1/responses"),
    ({"model": "nope"}, "model_not_found", "model", "'tiny'"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("body", "code", "param", "words"), REFUSED)
def test_refusals(server, body, code, param, words, stream):
    answer = httpx.post(f"{server.url}/v1/responses", json={"input": "a", "stream": stream, **body})
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == (code, param), error
    assert words in error["message"] and answer.status_code == (404 if code == "model_not_found" else 400)


def test_stored_responses_do_not_exist(client):
    for call in (client.responses.retrieve, client.responses.delete):
        with pytest.raises(openai.NotFoundError) as info:
            call("resp_1")
        assert info.value.code == "response_not_found"
