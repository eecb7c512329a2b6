"""What outputs say beside their text: log probabilities and counts, however the engine got there."""

from __future__ import annotations

import pytest

from core import Engine, SamplingParams
from core.errors import RequestError

ENDLESS = {"temperature": 0, "ignore_eos": True}


def test_prompt_logprobs_come_once_though_the_prompt_is_preempted_half_way():
    first, second = list(range(10, 20)), [(7 * i) % 2000 + 10 for i in range(350)]
    wish = SamplingParams(max_tokens=5, prompt_logprobs=1, **ENDLESS)
    # the second prompt fits when it comes; before it is through, the first request has taken its last block
    options = {"max_model_len": 368, "num_blocks": 23, "max_num_batched_tokens": 16}
    for overlap in (False, True):
        with Engine("demo", async_scheduling=overlap, **options) as engine:
            both = engine.generate([first, second], [SamplingParams(max_tokens=60, **ENDLESS), wish])
            assert engine.stats().num_preemptions == 1
            (alone,) = engine.generate([second], wish)
        found = both[1].prompt_logprobs
        assert found[0] is None and [p[0].token_id for p in found[1:]] == second[1:]
        assert [p[0].logprob for p in found[1:]] == pytest.approx([p[0].logprob for p in alone.prompt_logprobs[1:]])


def test_cached_tokens_are_known_of_streams_stop_strings_and_samples():
    prompt = "Once upon a time there was a little dog who lived in a house near the sea, and the dog was very happy."
    with Engine("demo") as engine:
        ids = engine.tokenizer.encode(prompt)
        want = (len(ids) - 1) // 16 * 16
        assert want >= 16
        # nothing is cached yet; that the second sample shares the first one's blocks is no hit of the prompt
        (pair,) = engine.generate(ids, SamplingParams(n=2, max_tokens=4, seed=1))
        assert pair.num_cached_tokens == 0
        for more in ({}, {"stop": [" "]}, {"n": 2, "seed": 1}, {"stop": [" "], "n": 2, "seed": 1}):
            params = SamplingParams(max_tokens=8, **more)
            assert engine.generate(ids, params)[0].num_cached_tokens == want
            assert [o.num_cached_tokens for o in engine.stream(ids, params)][0] == want


def test_what_is_no_prompt_is_refused_by_its_type(checkpoint):
    with Engine(str(checkpoint("llama"))) as engine:
        for wrong in (None, 5, [None], [1.5], [[]]):
            with pytest.raises(RequestError, match="a prompt is text|the prompt is empty"):
                engine.generate(wrong)
