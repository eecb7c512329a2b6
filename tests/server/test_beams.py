"""Beam search over HTTP: the same answers as in Python, in both routes."""

from __future__ import annotations

import concurrent.futures
import math

import httpx
import pytest

from core import BeamSearchParams, Engine

BODY = {"use_beam_search": True, "n": 3, "max_tokens": 12, "return_token_ids": True}


@pytest.fixture(scope="module")
def engine(tiny_model):
    """What the server's engine is, here."""
    with Engine(str(tiny_model), load_format="dummy", num_threads=1, num_blocks=256) as running:
        yield running


def test_completions(server, engine):
    params = BeamSearchParams(beam_width=3, max_tokens=12, logprobs=2)
    prompts = ["the engine", "the model serves"]
    found = engine.beam_search(prompts, params)
    answer = httpx.post(f"{server.url}/v1/completions", json={**BODY, "prompt": prompts, "logprobs": 2}).json()
    assert len(answer["choices"]) == 6
    for choice, mine in zip(answer["choices"], [o for output in found for o in output.outputs], strict=True):
        assert (choice["text"], choice["token_ids"]) == (mine.text, mine.token_ids)
        assert (choice["finish_reason"], choice["stop_reason"]) == (mine.finish_reason, mine.stop_reason)
        chances = choice["logprobs"]["token_logprobs"]
        assert math.isclose(sum(chances), mine.cumulative_logprob, rel_tol=1e-4) and len(chances) == len(mine.token_ids)
    assert answer["usage"]["completion_tokens"] == sum(len(c["token_ids"]) for c in answer["choices"])
    assert answer["usage"]["prompt_tokens"] == sum(len(output.prompt_token_ids) for output in found)


def test_chats_and_the_knobs_of_the_search(server, engine):
    messages = [{"role": "user", "content": "hello"}]
    whole = engine._client.render_chat(messages)
    body = {**BODY, "messages": messages, "best_of": 5, "n": 2, "length_penalty": -1, "early_stopping": "never"}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json={**body, "ignore_eos": True}).json()
    params = BeamSearchParams(
        beam_width=5, n=2, max_tokens=12, length_penalty=-1, early_stopping="never", ignore_eos=True
    )
    (found,) = engine.beam_search([engine.tokenizer.encode(whole, False)], params)
    assert [c["token_ids"] for c in answer["choices"]] == [o.token_ids for o in found.outputs]
    assert [c["message"]["content"] for c in answer["choices"]] == [o.text for o in found.outputs]


def test_beside_others_and_again(server):
    """Many at a time, and a client that goes away: each has what it has alone, and nothing is left."""
    url = f"{server.url}/v1/completions"

    def ask(i: int) -> list[list[int]]:
        answer = httpx.post(url, json={**BODY, "prompt": [i + 6, i + 7]}, timeout=60)
        return [c["token_ids"] for c in answer.json()["choices"]]

    alone = [ask(i) for i in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8))) == alone
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(url, json={**BODY, "prompt": "the", "n": 10, "max_tokens": 3000, "ignore_eos": True}, timeout=0.3)
    server.wait_idle()
    refused = httpx.post(url, json={**BODY, "prompt": "the", "best_of": 11})
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "best_of"
