"""allowed_token_ids, alone and beside everything else that forbids tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from core import Engine, GuidedDecodingParams, SamplingParams
from core.batch import Bitmasks, NewRow
from core.errors import RequestError
from core.request import Request
from core.sampling.rows import SamplingRows
from core.sampling.sampler import Sampler

VOCAB = 40
ALLOWED = (3, 17, 31)


def choose(*wishes: SamplingParams, logits: torch.Tensor, masks: Bitmasks | None = None, stops=()) -> list[int]:
    """The next token of a row for each wish, behind a prompt of one token."""
    rows = SamplingRows(len(wishes), torch.device("cpu"))
    prompt = np.zeros(1, np.int32)
    new = [
        Request(handle=i, request_id=str(i), prompt_token_ids=prompt, params=p, arrival_time_s=0, max_total_tokens=9,
                stop_token_ids=frozenset(stops), bad_words_ids=[[4]] if p.bad_words else [], seed=i)
        for i, p in enumerate(wishes)
    ]  # fmt: skip
    rows.enter([NewRow(i, r, prompt) for i, r in enumerate(new)])
    sampler = Sampler(rows, torch.zeros(len(wishes), 9, dtype=torch.int32))
    index = np.arange(len(wishes))
    return sampler(
        logits.expand(len(wishes), -1).clone(), index, torch.from_numpy(index), np.ones(len(wishes)), masks
    ).tolist()


def test_the_likeliest_of_them_or_a_draw_from_them():
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(1))
    best = max(ALLOWED, key=lambda i: float(logits[i]))
    free, held = SamplingParams(temperature=0), SamplingParams(temperature=0, allowed_token_ids=ALLOWED)
    assert choose(free, held, free, logits=logits) == [int(logits.argmax()), best, int(logits.argmax())]
    drawn = choose(*[SamplingParams(temperature=5, top_p=0.99, allowed_token_ids=ALLOWED)] * 300, logits=logits)
    share = torch.softmax(logits[list(ALLOWED)] / 5, 0)
    assert set(drawn) == set(ALLOWED)
    for token, expected in zip(ALLOWED, share.tolist(), strict=True):
        assert abs(drawn.count(token) / 300 - expected) < 0.12
    # a bias and penalties count among them
    biased = SamplingParams(temperature=0, allowed_token_ids=ALLOWED, logit_bias={17: 50.0, 5: 100.0})
    assert choose(biased, logits=logits) == [17]


def test_where_nothing_is_left():
    """min_tokens and bad words give way to them, and they to a grammar."""
    logits = torch.zeros(VOCAB)
    logits[4] = logits[9] = 9.0
    ends = SamplingParams(temperature=0, allowed_token_ids=(4,), min_tokens=5)
    words = SamplingParams(temperature=0, allowed_token_ids=(4,), bad_words=("x",))
    both = SamplingParams(temperature=0, allowed_token_ids=(4, 30), bad_words=("x",))
    assert choose(ends, words, both, logits=logits, stops=(4,)) == [4, 4, 30]
    bits = np.zeros((1, 2), np.int32)
    bits[0, 0] = 1 << 9
    masks = Bitmasks(np.array([0]), bits, np.concatenate([np.full((1, 2), -1, np.int32), bits]))
    assert choose(both, both, logits=logits, masks=masks) == [9, 30]


@pytest.mark.parametrize("overlap", [False, True])
def test_an_engine_s_answers_hold_nothing_else(overlap):
    with Engine(async_scheduling=overlap, num_threads=1) as engine:
        ids = engine.tokenizer.encode("0123456789", add_special_tokens=False)
        held = SamplingParams(temperature=1, seed=3, max_tokens=20, allowed_token_ids=ids, logprobs=0)
        free = SamplingParams(temperature=0, max_tokens=20)
        alone = engine.generate("What is 2 + 3?", free)[0].outputs[0]
        first, second = engine.generate(["What is 2 + 3?"] * 2, [free, held])
        assert first.outputs[0].token_ids == alone.token_ids
        assert set(second.outputs[0].token_ids) <= set(ids) and len(second.outputs[0].token_ids) == 20
        assert second.outputs[0].finish_reason == "length"
        again = engine.generate("What is 2 + 3?", held)[0].outputs[0]
        assert again.token_ids == second.outputs[0].token_ids
        # among what a grammar allows
        guided = GuidedDecodingParams(regex="[a-c5]{6}")
        both = SamplingParams(temperature=1, seed=1, max_tokens=9, allowed_token_ids=ids, guided_decoding=guided)
        assert engine.generate("x", both)[0].outputs[0].text == "555555"
        for wrong in ([], [engine.ready.vocab_size], [-1]):
            with pytest.raises(RequestError, match="allowed_token_ids|not one of the model's") as info:
                engine.generate("x", SamplingParams(allowed_token_ids=wrong))
            assert info.value.param == "allowed_token_ids"
