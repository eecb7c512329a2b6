"""`strict: true` where the model may choose: text is free until a call opens, and its arguments follow the schema."""

from __future__ import annotations

import json
import shutil

import httpx
import openai
import pytest
from tokenizers import Tokenizer

ASK = [{"role": "user", "content": "What is the weather in Oslo?"}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Paris"]}, "days": {"type": "integer", "minimum": 2, "maximum": 2}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
LISTED = {**SCHEMA, "properties": {"city": SCHEMA["properties"]["city"]}, "required": ["city"]}
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


def test_whole_messages_of_gpt_oss_are_held(start_server):
    """A model that never saw the format writes it all the same, and only calls there are."""
    server = start_server(engine={"tool_call_parser": "gpt_oss", "reasoning_parser": "gpt_oss", "num_blocks": 512})
    body = {
        "messages": ASK,
        "max_tokens": 150,
        "tools": [*tools(LOOSE), *tools({**FUNCTION, "name": "f"}, strict=True)],
    }
    called = held = 0
    for seed in range(12):
        answer = httpx.post(
            f"{server.url}/v1/chat/completions", json={**body, "seed": seed, "temperature": 1.5}, timeout=60
        ).json()
        (choice,) = answer["choices"]
        message = choice["message"]
        said = (message["content"] or "") + (message.get("reasoning_content") or "")
        assert "<|channel|>" not in said or choice["finish_reason"] == "length"
        for call in message.get("tool_calls") or ():
            called += 1
            if choice["finish_reason"] == "tool_calls":
                value = json.loads(call["function"]["arguments"])
                assert call["function"]["name"] == "get_weather" or value["days"] == 2
                held += call["function"]["name"] == "f"
    assert called and held
    body |= {"messages": [*ASK, {"role": "assistant", "content": "It is"}]}
    body |= {"continue_final_message": True, "add_generation_prompt": False}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body).json()["error"]
    assert (answer["param"], answer["code"]) == ("tools[1].function.strict", "unsupported_parameter")
    assert "continue_final_message in the format 'gpt_oss'" in answer["message"]


HARMONY = ["<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|return|>", "<|call|>"]
MISTRAL = ["[THINK]", "[/THINK]", "[TOOL_CALLS]", "[ARGS]"]
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.mark.parametrize(
    ("special", "ends", "template"),
    [
        (
            HARMONY,
            ["<|return|>", "<|call|>"],
            TEMPLATE + "{# <|channel|>analysis<|message|> <|call|> #}<|start|>assistant",
        ),
        (MISTRAL, ["</s>"], TEMPLATE + "{# [TOOL_CALLS] [THINK] #}"),
        (MISTRAL, ["</s>"], TEMPLATE + "{# [TOOL_CALLS] #}[THINK]"),
    ],
    ids=["gpt_oss", "magistral", "magistral, opened by the prompt"],
)
def test_markers_that_are_special_tokens(start_server, tiny_model, tmp_path, special, ends, template):
    """A checkpoint whose tokenizer has them, and random weights: whatever comes is whole, and every call holds."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    eos = [tokenizer.token_to_id(t) for t in ends]
    config = json.loads((folder / "config.json").read_text())
    config |= {"vocab_size": tokenizer.get_vocab_size(), "eos_token_id": eos}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    settings = {"bos_token": "<s>", "eos_token": ends[0], "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    server = start_server(engine={"model": str(folder), "num_blocks": 512})
    # likely to open a call (in harmony: not to open anything else), and to end one
    bias = {str(tokenizer.token_to_id(t)): 4 for t in (*special, *ends)}
    bias |= {str(tokenizer.token_to_id(t)): -4 for t in ("<|channel|>", "<|message|>") if t in special}
    body = {"messages": ASK, "max_tokens": 200, "tools": tools({**FUNCTION, "parameters": LISTED}, strict=True)}
    called = 0
    for seed in range(10):
        answer = httpx.post(
            f"{server.url}/v1/chat/completions", json={**body, "seed": seed, "logit_bias": bias}, timeout=60
        ).json()
        (choice,) = answer["choices"]
        message, ended = choice["message"], choice["finish_reason"] != "length"
        said = (message["content"] or "") + (message.get("reasoning_content") or "")
        assert not ended or not any(t in said for t in special), message
        calls = message.get("tool_calls") or []
        for call in calls if ended else calls[:-1]:
            called += 1
            assert call["function"]["name"] == "get_weather"
            assert json.loads(call["function"]["arguments"]) in ({"city": "Rome"}, {"city": "Paris"})
        if ended and special is HARMONY:
            assert choice["finish_reason"] == ("tool_calls" if calls else "stop")
    assert called


PARSER = """
from core import hookimpl
from plugins.parsers.gpt_oss import GptOssReasoning

@hookimpl
def register_tool_parsers(register):
    register("plain", "plain_parser:Plain", markers=["<plain>"])

class Plain(GptOssReasoning):
    strict_format = None
"""


def test_what_cannot_be_held_is_refused_by_name(client, start_server, install_package, tmp_path):
    bad = {**SCHEMA, "properties": {"a": {"type": "array", "uniqueItems": True}}, "unevaluatedProperties": False}
    with pytest.raises(openai.BadRequestError, match="unevaluatedProperties"):
        client.chat.completions.create(
            model="demo", messages=ASK, tools=tools({**FUNCTION, "parameters": bad}, strict=True)
        )
    site = install_package(tmp_path, "plain-parser", PARSER)
    server = start_server(engine={"tool_call_parser": "plain", "num_blocks": 512}, env={"PYTHONPATH": str(site)})
    body = {"messages": ASK, "max_tokens": 30, "tools": [*tools(LOOSE), *tools({**FUNCTION, "name": "f"}, strict=True)]}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body).json()["error"]
    assert (answer["param"], answer["code"]) == ("tools[1].function.strict", "unsupported_parameter")
    assert "tool_call_parser 'plain', whose format cannot be held" in answer["message"]
    body["tool_choice"] = "required"
    assert httpx.post(f"{server.url}/v1/chat/completions", json=body).status_code == 200
    tool = {"type": "function", "strict": True, **FUNCTION}
    answer = httpx.post(f"{server.url}/v1/responses", json={"input": "a", "tools": [tool]}).json()["error"]
    assert answer["param"] == "tools[0].strict"
