"""/v1/messages through the Anthropic client, its types validated strictly, against the demo model in a real server."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

anthropic = pytest.importorskip("anthropic", reason="pip install backplane[clients]")

WEATHER = {
    "name": "get_weather",
    "description": "Get the weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
ASK = [{"role": "user", "content": "What is the weather in Oslo?"}]
HELLO = [{"role": "user", "content": "Hello!"}]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "city": {"type": "string"}},
    "required": ["name", "age", "city"],
    "additionalProperties": False,
}
GREEDY = {"temperature": 0}


@pytest.fixture
def client(demo_server):
    with anthropic.Anthropic(
        base_url=demo_server.url, api_key="x", max_retries=0, timeout=60, _strict_response_validation=True
    ) as c:
        yield c


def test_a_message(client, demo_server):
    answer = client.messages.create(
        model="demo",
        max_tokens=100,
        system=[{"type": "text", "text": "You know this engine.", "cache_control": {"type": "ephemeral"}}],
        messages=[{"role": "user", "content": [{"type": "text", "text": "What is block_size?"}]}],
        metadata={"user_id": "u"},
        extra_body=GREEDY,
    )
    assert (answer.type, answer.role, answer.stop_reason) == ("message", "assistant", "end_turn")
    assert answer.id.startswith("msg_") and answer.usage.output_tokens > 3 and answer._request_id
    chat = httpx.post(
        f"{demo_server.url}/v1/chat/completions",
        json={
            "messages": [
                {"role": "system", "content": "You know this engine."},
                {"role": "user", "content": "What is block_size?"},
            ],
            **GREEDY,
        },
    ).json()
    assert answer.content[0].text == chat["choices"][0]["message"]["content"]
    total = answer.usage.input_tokens + answer.usage.cache_read_input_tokens
    assert total == chat["usage"]["prompt_tokens"]


def test_events_of_a_message(client):
    options = dict(model="demo", max_tokens=60, messages=HELLO, extra_body=GREEDY)
    events = list(client.messages.create(**options, stream=True))
    kinds = [e.type for e in events if e.type != "ping"]
    deltas = kinds.count("content_block_delta")
    assert deltas > 1 and kinds == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * deltas,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    text = "".join(e.delta.text for e in events if e.type == "content_block_delta")
    assert text == client.messages.create(**options).content[0].text
    assert events[-2].delta.stop_reason == "end_turn" and events[-2].usage.output_tokens > 1
    with client.messages.stream(**options) as stream:
        assert "".join(stream.text_stream) == text
        assert stream.get_final_message().content[0].text == text


def test_tools(client):
    options = dict(model="demo", max_tokens=100, tools=[WEATHER], extra_body=GREEDY)
    first = client.messages.create(messages=ASK, **options)
    (call,) = first.content
    assert (first.stop_reason, call.type, call.name, call.input) == (
        "tool_use",
        "tool_use",
        "get_weather",
        {"city": "Oslo"},
    )
    messages = [
        *ASK,
        {"role": "assistant", "content": [b.model_dump(exclude_none=True) for b in first.content]},
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": call.id, "content": '{"temperature": 7}'}],
        },
    ]
    second = client.messages.create(messages=messages, **options)
    assert "7" in second.content[0].text and second.stop_reason == "end_turn"
    with client.messages.stream(messages=ASK, **options) as stream:
        pieces = [e.partial_json for e in stream if e.type == "input_json"]
        assert json.loads("".join(pieces)) == {"city": "Oslo"}
        assert stream.get_final_message().content[0].input == {"city": "Oslo"}


@pytest.mark.parametrize(
    ("choice", "kind"),
    [({"type": "any"}, "tool_use"), ({"type": "tool", "name": "get_weather"}, "tool_use"), ({"type": "none"}, "text")],
)
def test_tool_choice(client, choice, kind):
    answer = client.messages.create(
        model="demo", max_tokens=60, messages=ASK, tools=[WEATHER], tool_choice=choice, extra_body=GREEDY
    )
    assert answer.content[0].type == kind


def test_a_schema(client):
    answer = client.messages.create(
        model="demo",
        max_tokens=100,
        messages=[{"role": "user", "content": "Mila is 44 years old and lives in Porto. Extract name, age and city."}],
        extra_body={**GREEDY, "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
    )
    assert set(json.loads(answer.content[0].text)) == {"name", "age", "city"}


def test_stops(client):
    options = dict(model="demo", messages=[{"role": "user", "content": "What is block_size?"}], extra_body=GREEDY)
    short = client.messages.create(max_tokens=3, **options)
    assert short.stop_reason == "max_tokens" and short.usage.output_tokens == 3
    whole = client.messages.create(max_tokens=100, **options).content[0].text
    word = whole.split()[3]
    stopped = client.messages.create(max_tokens=100, stop_sequences=[word], **options)
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", word)
    assert stopped.content[0].text == whole.split(word)[0]


def test_a_beginning_is_continued(client, demo_server):
    messages = [{"role": "user", "content": "What is block_size?"}, {"role": "assistant", "content": "block_size is"}]
    answer = client.messages.create(model="demo", max_tokens=12, messages=messages, extra_body=GREEDY)
    body = {"messages": messages, "max_tokens": 12, "continue_final_message": True, "echo": True, **GREEDY}
    chat = httpx.post(f"{demo_server.url}/v1/chat/completions", json=body).json()
    assert "block_size is" + answer.content[0].text == chat["choices"][0]["message"]["content"]


def test_counting(client, demo_server):
    options = dict(model="demo", system="Be short.", messages=HELLO, tools=[WEATHER])
    count = client.messages.count_tokens(**options).input_tokens
    answer = client.messages.create(**options, max_tokens=5)
    assert count == answer.usage.input_tokens + answer.usage.cache_read_input_tokens > 10


def test_async_clients_side_by_side(demo_server):
    async def main():
        async with anthropic.AsyncAnthropic(
            base_url=demo_server.url, api_key="x", max_retries=0, _strict_response_validation=True
        ) as client:

            async def one():
                async with client.messages.stream(
                    model="demo", max_tokens=60, messages=HELLO, extra_body=GREEDY
                ) as stream:
                    return "".join([t async for t in stream.text_stream])

            whole = await client.messages.create(model="demo", max_tokens=60, messages=HELLO, extra_body=GREEDY)
            assert set(await asyncio.gather(*(one() for _ in range(8)))) == {whole.content[0].text}

    asyncio.run(main())


IMAGE = {"type": "image", "source": {"type": "url", "url": "http://x/y.png"}}
TABLE = [
    ({"model": "nope"}, 404, "not_found_error", "nope"),
    ({"max_tokens": None}, 400, "invalid_request_error", "max_tokens is required"),
    ({"max_tokens": 0}, 400, "invalid_request_error", "max_tokens=0 must be"),
    ({"messages": []}, 400, "invalid_request_error", "messages is empty"),
    ({"messages": [{"role": "wizard", "content": "a"}]}, 400, "invalid_request_error", "messages[0].role"),
    ({"messages": [{"role": "user", "content": [IMAGE]}]}, 400, "invalid_request_error", "messages[0].content[0].type"),
    ({"tools": [{"type": "web_search_20250305", "name": "w"}]}, 400, "invalid_request_error", "tools[0].type"),
    ({"tools": [{"name": "w"}]}, 400, "invalid_request_error", "tools[0].input_schema"),
    ({"tool_choice": {"type": "maybe"}}, 400, "invalid_request_error", "tool_choice.type"),
    ({"mcp_servers": []}, 400, "invalid_request_error", "mcp_servers"),
    ({"container": "c"}, 400, "invalid_request_error", "container"),
    ({"context_management": {}}, 400, "invalid_request_error", "context_management"),
    ({"stop_sequences": [""]}, 400, "invalid_request_error", "stop_sequences"),
    ({"temperature": -1}, 400, "invalid_request_error", "temperature"),
    ({"output_config": {"format": {"type": "xml"}}}, 400, "invalid_request_error", "output_config.format"),
    ({"thinking": {"type": "often"}}, 400, "invalid_request_error", "thinking.type"),
    ({"frequency": 3}, 400, "invalid_request_error", "frequency"),
]


@pytest.mark.parametrize(("body", "status", "kind", "words"), TABLE)
def test_errors_have_this_apis_shape(server, body, status, kind, words):
    whole = {"model": "tiny", "max_tokens": 5, "messages": HELLO, **body}
    answer = httpx.post(f"{server.url}/v1/messages", json=whole, headers={"x-request-id": "abc"})
    assert answer.status_code == status and answer.headers["request-id"] == "abc"
    said = answer.json()
    assert said["type"] == "error" and said["error"]["type"] == kind and said["request_id"] == "abc"
    assert words in said["error"]["message"], said


def test_keys_by_either_header(keyed_server):
    for key, auth, ok in (("secret", None, True), (None, "secret", True), ("wrong", None, False)):
        with anthropic.Anthropic(base_url=keyed_server.url, api_key=key, auth_token=auth, max_retries=0) as client:
            if ok:
                assert client.messages.create(model="tiny", max_tokens=2, messages=HELLO).content is not None
                continue
            with pytest.raises(anthropic.AuthenticationError) as info:
                client.messages.create(model="tiny", max_tokens=2, messages=HELLO)
            assert info.value.body["error"]["type"] == "authentication_error"


def test_left_out_by_option(start_server):
    server = start_server(engine={"disable_plugin": ("anthropic",)})
    assert httpx.post(f"{server.url}/v1/messages", json={}).status_code == 404
