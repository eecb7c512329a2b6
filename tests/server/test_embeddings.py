"""/v1/embeddings, /v1/score and /v1/rerank of a real server, through the openai client and plain HTTP."""

from __future__ import annotations

import asyncio
import base64

import httpx
import numpy as np
import openai
import pytest

TEXTS = ["the engine", "serves the model", "and the model serves the engine"]


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=60) as c:
        yield c


def tokens(server, text) -> list[int]:
    return httpx.post(f"{server.url}/tokenize", json={"prompt": text}).json()["tokens"]


def vectors(answer) -> np.ndarray:
    return np.array([d.embedding for d in answer.data])


def test_forms_of_input_give_the_same_vectors(server, client):
    whole = client.embeddings.create(model="tiny", input=TEXTS)  # the client asks for base64
    assert [d.index for d in whole.data] == [0, 1, 2] and whole.model == "tiny" and whole.object == "list"
    made = vectors(whole)
    assert made.shape == (3, 32) and np.linalg.norm(made, axis=1) == pytest.approx(np.ones(3), abs=1e-6)
    ids = [tokens(server, t) for t in TEXTS]
    assert whole.usage.prompt_tokens == whole.usage.total_tokens == sum(map(len, ids))
    for form in (TEXTS[0], [TEXTS[0]], ids[0], [ids[0]]):
        for encoding in ("float", "base64"):
            answer = client.embeddings.create(model="tiny", input=form, encoding_format=encoding)
            value = answer.data[0].embedding
            if isinstance(value, str):  # asked for by name, base64 is not decoded by the client
                value = np.frombuffer(base64.b64decode(value), "<f4")
            np.testing.assert_allclose(value, made[0], atol=1e-5)
    np.testing.assert_allclose(vectors(client.embeddings.create(model="also-tiny", input=ids)), made, atol=1e-5)


def test_the_answer_is_what_the_clients_types_say(server):
    # with the base64 that it asks for otherwise, the client decodes after it has validated
    options = {"base_url": f"{server.url}/v1", "api_key": "x", "max_retries": 0}
    with openai.OpenAI(**options, _strict_response_validation=True) as strict:
        answer = strict.embeddings.create(model="tiny", input=TEXTS, encoding_format="float")
    assert len(answer.data) == 3 and isinstance(answer.data[0].embedding[0], float)


def test_async_beside_a_stream(server):
    async def main():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
            stream = await client.completions.create(
                model="tiny", prompt="the", max_tokens=200, stream=True, extra_body={"ignore_eos": True}
            )
            jobs = [client.embeddings.create(model="tiny", input=f"engine {i}") for i in range(40)]
            answers, chunks = await asyncio.gather(asyncio.gather(*jobs), _all(stream))
            assert sum(bool(c.choices[0].finish_reason) for c in chunks) == 1
            together = await client.embeddings.create(model="tiny", input=[f"engine {i}" for i in range(40)])
            np.testing.assert_allclose([a.data[0].embedding for a in answers], vectors(together), atol=1e-5)

    async def _all(stream):
        return [c async for c in stream]

    asyncio.run(main())


def test_dimensions_normalize_and_truncation(server, client):
    full = vectors(client.embeddings.create(model="tiny", input=TEXTS[2]))[0]
    cut = vectors(client.embeddings.create(model="tiny", input=TEXTS[2], dimensions=8))[0]
    np.testing.assert_allclose(cut, full[:8] / np.linalg.norm(full[:8]), atol=1e-5)
    raw = vectors(client.embeddings.create(model="tiny", input=TEXTS[2], extra_body={"normalize": False}))[0]
    assert np.linalg.norm(raw) != pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(raw / np.linalg.norm(raw), full, atol=1e-5)
    ids = tokens(server, TEXTS[2])
    last = vectors(client.embeddings.create(model="tiny", input=TEXTS[2], extra_body={"truncate_prompt_tokens": 3}))[0]
    np.testing.assert_allclose(last, vectors(client.embeddings.create(model="tiny", input=ids[-3:]))[0], atol=1e-5)
    long = ids * 800
    answer = client.embeddings.create(model="tiny", input=long, extra_body={"truncate_prompt_tokens": -1})
    assert answer.usage.prompt_tokens == 4096


def test_a_chat_is_embedded_as_its_template_writes_it(server, client):
    body = {"model": "tiny", "messages": [{"role": "user", "content": "the engine"}]}
    answer = httpx.post(f"{server.url}/v1/embeddings", json=body).json()
    same = client.embeddings.create(model="tiny", input="<|user|>the engine\n", encoding_format="float")
    np.testing.assert_allclose(answer["data"][0]["embedding"], same.data[0].embedding, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"input": ""}, "input", "invalid_value"),
        ({"input": []}, "input", "invalid_value"),
        ({"input": ["a", ""]}, "input[1]", "invalid_value"),
        ({"input": ["a", 1]}, "input", "invalid_type"),
        ({"input": [1, 100000]}, "input", "invalid_value"),
        ({"input": [1] * 4097}, "input", "context_length_exceeded"),
        ({"input": ["a"] * 2049}, "input", "invalid_value"),
        ({"input": None}, "input", "missing_required_parameter"),
        ({"messages": [{"role": "user", "content": "a"}]}, "input", "missing_required_parameter"),
        ({"dimensions": 33}, "dimensions", "invalid_value"),
        ({"dimensions": 0}, "dimensions", "invalid_value"),
        ({"encoding_format": "bytes"}, "encoding_format", "invalid_value"),
        ({"embed_dtype": "float16"}, "embed_dtype", "unsupported_parameter"),
        ({"endianness": "big"}, "endianness", "unsupported_parameter"),
        ({"dimension": 8}, "dimension", "unknown_parameter"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "invalid_value"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens", "invalid_value"),
        ({"truncation_side": "right"}, "truncation_side", "unsupported_parameter"),
        ({"chat_template": "x"}, "chat_template", "unsupported_parameter"),
        ({"add_generation_prompt": True}, "add_generation_prompt", "invalid_value"),
    ],
)
def test_what_is_wrong_is_named(server, change, param, code):
    answer = httpx.post(f"{server.url}/v1/embeddings", json={"model": "tiny", "input": "a", **change})
    assert (answer.status_code, answer.json()["error"]["param"], answer.json()["error"]["code"]) == (400, param, code)


def test_a_model_that_is_not_served(client):
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="text-embedding-3-small", input="a")


def test_mean_pooling_is_an_option_of_the_server(start_server, client):
    mean = start_server(engine={"pooling_type": "mean", "num_blocks": 512})
    last = vectors(client.embeddings.create(model="tiny", input=TEXTS))
    with openai.OpenAI(base_url=f"{mean.url}/v1", api_key="unused", max_retries=0) as other:
        made = vectors(other.embeddings.create(model="tiny", input=TEXTS))
        one = vectors(other.embeddings.create(model="tiny", input=[0], encoding_format="float"))
    assert np.abs(made - last).max() > 0.01
    np.testing.assert_allclose(one, vectors(client.embeddings.create(model="tiny", input=[0])), atol=1e-5)


def test_a_client_that_goes_away_leaves_nothing(server):
    with pytest.raises(httpx.ReadTimeout):
        body = {"model": "tiny", "input": [[7 + i % 300, *[1 + i // 300] * 3000] for i in range(150)]}
        httpx.post(f"{server.url}/v1/embeddings", json=body, timeout=httpx.Timeout(30, read=0.3))
    server.wait_idle(20)
    assert server.metric("vllm:kv_cache_usage_perc") == 0


# ---- scores


def test_scores_are_cosine_similarities(server, client):
    made = vectors(client.embeddings.create(model="tiny", input=TEXTS))
    for names in (("text_1", "text_2"), ("queries", "documents"), ("data_1", "data_2")):
        for path in ("/score", "/v1/score"):
            body = dict(zip(names, (TEXTS[0], TEXTS[1:]), strict=True))
            answer = httpx.post(server.url + path, json={"model": "tiny", **body}).json()
            assert [d["score"] for d in answer["data"]] == pytest.approx((made[1:] @ made[0]).tolist(), abs=1e-5)
            assert answer["object"] == "list" and [d["index"] for d in answer["data"]] == [0, 1]
    pairs = httpx.post(f"{server.url}/v1/score", json={"text_1": TEXTS, "text_2": TEXTS[::-1]}).json()
    assert [d["score"] for d in pairs["data"]] == pytest.approx((made * made[::-1]).sum(1).tolist(), abs=1e-5)
    assert pairs["usage"]["prompt_tokens"] == 2 * sum(len(tokens(server, t)) for t in TEXTS)


def test_ranking(server, client):
    made = vectors(client.embeddings.create(model="tiny", input=TEXTS))
    scores = made @ made[1]
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        body = {"model": "tiny", "query": TEXTS[1], "documents": TEXTS}
        answer = httpx.post(server.url + path, json=body).json()
        assert [r["index"] for r in answer["results"]] == np.argsort(-scores).tolist()
        best = answer["results"][0]
        assert best["relevance_score"] == pytest.approx(1, abs=1e-5) and best["document"] == {"text": TEXTS[1]}
    body = {"query": TEXTS[1], "documents": [{"text": t} for t in TEXTS], "top_n": 2, "return_documents": False}
    short = httpx.post(f"{server.url}/v1/rerank", json=body).json()["results"]
    assert len(short) == 2 and all("document" not in r for r in short)
    body = {"query": TEXTS[1], "documents": [TEXTS[2]], "max_tokens_per_doc": 2}
    cut = httpx.post(f"{server.url}/v1/rerank", json=body).json()
    begin = vectors(client.embeddings.create(model="tiny", input=tokens(server, TEXTS[2])[:2]))[0]
    assert cut["results"][0]["relevance_score"] == pytest.approx(begin @ made[1], abs=1e-5)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/score", {"text_1": "a"}, "text_2"),
        ("/v1/score", {"text_1": "a", "queries": "a", "text_2": "b"}, "text_1"),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "text_1"),
        ("/v1/score", {"text_1": "a", "text_2": ["a", ""]}, "text_2[1]"),
        ("/v1/score", {"text_1": "a", "text_2": []}, "text_2"),
        ("/v1/score", {"text_1": "a", "text_2": "b", "text_3": "c"}, "text_3"),
        ("/v1/rerank", {"documents": ["a"]}, "query"),
        ("/v1/rerank", {"query": "a", "documents": []}, "documents"),
        ("/v1/rerank", {"query": "a", "documents": [{"title": "a"}]}, "documents[0]"),
        ("/v1/rerank", {"query": "a", "documents": ["a"], "top_n": -1}, "top_n"),
        ("/v1/rerank", {"query": "a", "documents": ["a"], "rank_fields": ["title"]}, "rank_fields"),
    ],
)
def test_what_is_wrong_with_a_score_is_named(server, path, body, param):
    answer = httpx.post(server.url + path, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
