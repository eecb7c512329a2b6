"""The real openai client against the real server process."""

from __future__ import annotations

import asyncio
import math

import httpx
import openai
import pytest

MESSAGES = [{"role": "user", "content": "the engine"}]


@pytest.fixture
def client(server):
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="unused", max_retries=0, _strict_response_validation=True, timeout=60
    ) as c:
        yield c


@pytest.fixture
def lenient(server):
    """The types of text completions know no null where OpenAI sends one: before a stream's end, of an echo's first token."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=60) as c:
        yield c


def test_models(client):
    assert [m.id for m in client.models.list()] == ["tiny", "also-tiny"]
    assert client.models.retrieve("also-tiny").id == "also-tiny"
    with pytest.raises(openai.NotFoundError) as info:
        client.models.retrieve("org/other")
    assert info.value.code == "model_not_found" and "'tiny'" in info.value.message


def test_chat(client):
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES, max_completion_tokens=8, n=2, seed=1)
    assert [c.index for c in answer.choices] == [0, 1]
    assert answer.choices[0].message.role == "assistant" and answer.choices[0].message.content
    assert answer.usage.completion_tokens <= 16
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.id.startswith("chatcmpl-") and answer.model == "tiny"


def test_chat_stream_says_the_same_as_the_whole(client):
    options = dict(model="tiny", messages=MESSAGES, max_tokens=24, temperature=0, extra_body={"ignore_eos": True})
    whole = client.chat.completions.create(**options)
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == ["length"]
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 24
    assert all(c.usage is None for c in chunks[:-1])


def test_async_streams_side_by_side(server):
    async def one(client, i):
        stream = await client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": f"engine {i}"}],
            stream=True,
            max_tokens=12,
            extra_body={"ignore_eos": True},
            stream_options={"include_usage": True, "continuous_usage_stats": True},
        )
        usages = [chunk.usage.completion_tokens async for chunk in stream]
        assert usages == sorted(usages) and usages[-1] == 12

    async def main():
        async with openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key="x", max_retries=0, _strict_response_validation=True
        ) as client:
            await asyncio.gather(*(one(client, i) for i in range(16)))

    asyncio.run(main())


def test_chat_logprobs(client):
    answer = client.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        max_tokens=4,
        logprobs=True,
        top_logprobs=3,
        temperature=0,
        extra_body={"ignore_eos": True, "return_token_ids": True},
    )
    content = answer.choices[0].logprobs.content
    assert len(content) == 4 == len(answer.choices[0].token_ids)
    for position in content:
        assert [len(position.top_logprobs), position.logprob <= 0] == [3, True]
        # greedy: the chosen token is the likeliest, with the same bytes
        assert position.top_logprobs[0].token == position.token and position.bytes
        assert math.isclose(position.top_logprobs[0].logprob, position.logprob, abs_tol=1e-5)


def test_stream_logprobs(client):
    stream = client.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        max_tokens=6,
        logprobs=True,
        top_logprobs=2,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    positions = [p for c in stream for choice in c.choices if choice.logprobs for p in choice.logprobs.content]
    assert len(positions) == 6 and all(len(p.top_logprobs) == 2 for p in positions)


def test_completion_forms_of_prompt(client):
    ids = httpx.post(f"{client.base_url}tokenize", json={"prompt": "the engine"}).json()["tokens"]
    options = dict(model="tiny", max_tokens=6, temperature=0, extra_body={"ignore_eos": True})
    text = client.completions.create(prompt="the engine", **options).choices[0].text
    assert client.completions.create(prompt=ids, **options).choices[0].text == text
    both = client.completions.create(prompt=["the engine", "serves"], **options)
    assert [c.index for c in both.choices] == [0, 1] and both.choices[0].text == text
    lists = client.completions.create(prompt=[ids, ids], **options)
    assert [c.text for c in lists.choices] == [text, text]
    assert lists.usage.completion_tokens == 12


def test_completion_stream_of_several_prompts_and_answers(lenient):
    options = dict(model="tiny", max_tokens=5, n=2, prompt=["the", "engine serves"], extra_body={"ignore_eos": True})
    texts: dict[int, str] = {}
    ends = []
    for chunk in lenient.completions.create(**options, stream=True):
        for c in chunk.choices:
            texts[c.index] = texts.get(c.index, "") + c.text
            ends += [c.index] if c.finish_reason else []
    assert sorted(texts) == sorted(ends) == [0, 1, 2, 3]


def test_completion_stream_says_what_the_cache_gave(lenient):
    options = dict(model="tiny", max_tokens=3, prompt=[[7] * 40, [8] * 40], extra_body={"ignore_eos": True})
    lenient.completions.create(**options)
    whole = lenient.completions.create(**options).usage
    chunks = list(lenient.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage == whole and whole.prompt_tokens_details.cached_tokens == 64


def test_completion_echo_and_logprobs(lenient):
    answer = lenient.completions.create(
        model="tiny",
        prompt="the engine serves",
        max_tokens=3,
        echo=True,
        logprobs=2,
        temperature=0,
        extra_body={"ignore_eos": True},
    )
    choice = answer.choices[0]
    assert choice.text.startswith("the engine serves")
    shape = choice.logprobs
    assert shape.token_logprobs[0] is None and all(v <= 0 for v in shape.token_logprobs[1:])
    assert len(shape.tokens) == answer.usage.total_tokens == len(shape.text_offset) == len(shape.top_logprobs)
    assert "".join(shape.tokens).startswith("the engine serves") and shape.text_offset[0] == 0


def test_echo_alone_scores_a_prompt(lenient):
    answer = lenient.completions.create(model="tiny", prompt="the engine serves", max_tokens=0, echo=True, logprobs=1)
    assert answer.choices[0].text == "the engine serves"
    assert len(answer.choices[0].logprobs.tokens) == answer.usage.prompt_tokens
    assert answer.usage.completion_tokens == 0


def test_best_of_and_stop(client):
    answer = client.completions.create(
        model="tiny", prompt="the", best_of=3, n=1, max_tokens=4, extra_body={"ignore_eos": True}
    )
    assert len(answer.choices) == 1
    whole = (
        client.completions.create(
            model="tiny", prompt="the", max_tokens=30, temperature=0, extra_body={"ignore_eos": True}
        )
        .choices[0]
        .text
    )
    stop = next(ch for ch in whole[5:] if ch.isascii() and ch.isprintable())
    cut = client.completions.create(
        model="tiny", prompt="the", max_tokens=30, temperature=0, stop=[stop], extra_body={"ignore_eos": True}
    ).choices[0]
    assert cut.finish_reason == "stop" and cut.stop_reason == stop and cut.text == whole.split(stop)[0]


def test_vllm_extras_are_taken(client):
    answer = client.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        max_tokens=4,
        seed=3,
        extra_body={
            "top_k": 5,
            "min_p": 0.01,
            "repetition_penalty": 1.1,
            "min_tokens": 2,
            "stop_token_ids": [280],
            "skip_special_tokens": False,
            "spaces_between_special_tokens": False,
            "priority": 1,
            "cache_salt": "a",
            "add_special_tokens": False,
            "bad_words": ["model"],
            "prompt_logprobs": 1,
            "include_stop_str_in_output": True,
            "return_token_ids": True,
            "chat_template_kwargs": {"enable_thinking": False},
        },
        logit_bias={"5": -100},
        user="u",
        metadata={"a": "b"},
        store=False,
    )
    assert len(answer.prompt_logprobs) == answer.usage.prompt_tokens == len(answer.prompt_token_ids)


def test_prompts_are_cut_to_their_last_tokens(client):
    """Also one that is far too long."""
    text = "the engine serves the model " * 9000
    keep = {"truncate_prompt_tokens": 7, "return_token_ids": True}
    options = {"model": "tiny", "max_tokens": 3, "temperature": 0}
    answer = client.completions.create(prompt=text, echo=True, extra_body=keep, **options)
    end = text[-len(answer.choices[0].text.rpartition("model ")[0]) - 6 :]
    assert answer.usage.prompt_tokens == 7 and answer.choices[0].text.startswith(end) and len(end) < 60
    alone = client.completions.create(prompt=answer.choices[0].prompt_token_ids, echo=True, **options)
    assert alone.choices[0].text == answer.choices[0].text and alone.usage.prompt_tokens == 7
    messages = [{"role": "user", "content": text}]
    chat = client.chat.completions.create(
        messages=messages, extra_body={**keep, "truncate_prompt_tokens": -1}, **options
    )
    assert chat.usage.prompt_tokens == len(chat.prompt_token_ids) == 4093 and chat.usage.completion_tokens >= 1
    with pytest.raises(openai.BadRequestError, match="more than .* tokens"):
        client.completions.create(prompt=text, **options)


def test_only_allowed_tokens_are_chosen(client):
    ids = [200, 270, 280]
    extra = {"allowed_token_ids": ids, "return_token_ids": True}
    answer = client.completions.create(
        model="tiny", prompt="the", n=3, max_tokens=12, temperature=1.5, extra_body=extra
    )
    chosen = [t for c in answer.choices for t in c.token_ids]
    assert len(chosen) == 36 and set(chosen) <= set(ids)


def test_continue_final_message(client):
    messages = [*MESSAGES, {"role": "assistant", "content": "the model"}]
    answer = client.chat.completions.create(
        model="tiny",
        messages=messages,
        max_tokens=3,
        temperature=0,
        extra_body={"continue_final_message": True, "echo": True, "ignore_eos": True},
    )
    assert answer.choices[0].message.content.startswith("the model")


def test_developer_role_parts_and_tool_messages(client):
    messages = [
        {"role": "developer", "content": "be short"},
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "3"},
    ]
    assert client.chat.completions.create(model="tiny", messages=messages, max_tokens=2).choices
    tokens = httpx.post(f"{client.base_url}tokenize", json={"messages": messages}).json()
    text = httpx.post(f"{client.base_url}detokenize", json={"tokens": tokens["tokens"]}).json()["prompt"]
    assert text == "<|system|>be short\n<|user|>one\ntwo\n<|assistant|>\n<|tool|>3\n<|assistant|>"


def test_request_id_comes_back(server):
    for path in ("/v1/models", "/health", "/nowhere"):
        assert httpx.get(server.url + path, headers={"X-Request-Id": "abc-1"}).headers["x-request-id"] == "abc-1"
    assert len(httpx.get(server.url + "/health").headers["x-request-id"]) == 32


def test_one_request_id_for_two_requests_at_once(server):
    async def main():
        async with httpx.AsyncClient(timeout=60) as http:
            body = {"prompt": "the", "max_tokens": 40, "ignore_eos": True}
            answers = await asyncio.gather(
                *(
                    http.post(f"{server.url}/v1/completions", json=body, headers={"X-Request-Id": "same"})
                    for _ in range(3)
                )
            )
        assert [a.status_code for a in answers] == [200] * 3

    asyncio.run(main())
