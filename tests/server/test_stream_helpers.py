"""The openai client's helpers over chat completions: `.stream`, `.parse`, tools made from pydantic; sync and async."""

from __future__ import annotations

import asyncio

import openai
import pydantic
import pytest

HELLO = [{"role": "user", "content": "Hello!"}]
PERSON = [{"role": "user", "content": "Mila is 44 years old and lives in Porto. Extract name, age and city as JSON."}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "strict": True,
        "description": "Get the weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
ASK = [{"role": "user", "content": "What is the weather in Oslo?"}]


class Person(pydantic.BaseModel):
    name: str
    age: int
    city: str


MILA = Person(name="Mila", age=44, city="Porto")


@pytest.fixture
def client(demo_server):
    with openai.OpenAI(
        base_url=f"{demo_server.url}/v1", api_key="x", max_retries=0, _strict_response_validation=True, timeout=60
    ) as c:
        yield c


def test_parse(client):
    answer = client.chat.completions.parse(model="demo", messages=PERSON, response_format=Person, temperature=0)
    assert answer.choices[0].message.parsed == MILA and answer.choices[0].finish_reason == "stop"
    tool = openai.pydantic_function_tool(Person, name="save_person")
    assert tool["function"]["strict"] is True
    answer = client.chat.completions.parse(
        model="demo",
        messages=PERSON,
        tools=[tool],
        tool_choice="required",
        parallel_tool_calls=False,
        temperature=0,
        max_tokens=200,
    )
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "save_person" and isinstance(call.function.parsed_arguments, Person)
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model="demo", messages=PERSON, response_format=Person, max_tokens=2)


def test_stream_of_text_schema_and_tool(client):
    whole = client.chat.completions.create(model="demo", messages=HELLO, temperature=0).choices[0].message.content
    with client.chat.completions.stream(model="demo", messages=HELLO, temperature=0) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert final.choices[0].message.content == whole
    assert {"chunk", "content.delta", "content.done"} <= set(kinds)
    with client.chat.completions.stream(
        model="demo", messages=PERSON, response_format=Person, temperature=0, stream_options={"include_usage": True}
    ) as stream:
        done = [event for event in stream if event.type == "content.done"]
        final = stream.get_final_completion()
    assert done[0].parsed == final.choices[0].message.parsed == MILA and final.usage.completion_tokens > 5
    with client.chat.completions.stream(model="demo", messages=ASK, tools=[WEATHER], temperature=0) as stream:
        events = [e for e in stream if e.type.startswith("tool_calls.function.arguments")]
        final = stream.get_final_completion()
    assert events[-1].type.endswith("done") and events[-1].parsed_arguments == {"city": "Oslo"}
    (call,) = final.choices[0].message.tool_calls
    assert call.function.parsed_arguments == {"city": "Oslo"} and final.choices[0].finish_reason == "tool_calls"


def test_stream_of_logprobs(client):
    with client.chat.completions.stream(
        model="demo", messages=HELLO, temperature=0, logprobs=True, top_logprobs=2
    ) as stream:
        deltas = [e for e in stream if e.type == "logprobs.content.delta"]
        final = stream.get_final_completion()
    positions = final.choices[0].logprobs.content
    assert deltas and len(positions) >= 2 and all(len(p.top_logprobs) == 2 for p in positions)


def test_async_helpers_side_by_side(demo_server):
    async def main():
        async with openai.AsyncOpenAI(
            base_url=f"{demo_server.url}/v1", api_key="x", max_retries=0, _strict_response_validation=True
        ) as client:

            async def one() -> Person | None:
                manager = client.chat.completions.stream(
                    model="demo", messages=PERSON, response_format=Person, temperature=0
                )
                async with manager as stream:
                    async for _ in stream:
                        pass
                    return (await stream.get_final_completion()).choices[0].message.parsed

            assert await asyncio.gather(*(one() for _ in range(8))) == [MILA] * 8
            answer = await client.chat.completions.parse(
                model="demo", messages=PERSON, response_format=Person, temperature=0
            )
            assert answer.choices[0].message.parsed == MILA

    asyncio.run(main())
    demo_server.wait_idle()
