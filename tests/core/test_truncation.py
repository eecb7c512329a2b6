"""truncate_prompt_tokens: the last tokens of a prompt, in the engine and over HTTP's bodies alike."""

from __future__ import annotations

import pytest

from core import Engine, SamplingParams
from core.errors import RequestError

LONG = "one two three four five six seven eight nine ten " * 40


@pytest.fixture(scope="module")
def engine():
    with Engine(max_model_len=64, num_threads=1) as running:
        yield running


def wish(keep: int | None, **options) -> SamplingParams:
    return SamplingParams(
        temperature=0, truncate_prompt_tokens=keep, **{"max_tokens": 4, "ignore_eos": True, **options}
    )


def test_the_answer_is_that_to_the_last_tokens(engine):
    ids = engine.tokenizer.encode(LONG)
    assert len(ids) > 64
    (whole,) = engine.generate([ids[-20:]], wish(None))
    for prompt in (LONG, ids, {"prompt": LONG}):
        (cut,) = engine.generate([prompt], wish(20))
        assert cut.prompt_token_ids == ids[-20:]
        assert cut.outputs[0].token_ids == whole.outputs[0].token_ids
    (short,) = engine.generate([ids[:5]], wish(20))
    assert short.prompt_token_ids == ids[:5]
    streamed = [o for o in engine.stream(LONG, wish(20))]
    assert [t for o in streamed for t in o.outputs[0].token_ids] == list(whole.outputs[0].token_ids)


@pytest.mark.parametrize(("max_tokens", "kept"), [(4, 60), (None, 63), (63, 1), (500, 1)])
def test_minus_one_leaves_room_for_the_answer(engine, max_tokens, kept):
    (output,) = engine.generate([LONG], wish(-1, max_tokens=max_tokens))
    assert output.prompt_token_ids == engine.tokenizer.encode(LONG)[-kept:]
    assert len(output.outputs[0].token_ids) == 64 - kept


def test_chats_are_cut_too(engine):
    messages = [{"role": "user", "content": LONG}]
    (output,) = engine.chat(messages, wish(12))
    text = engine._client.render_chat(messages)
    assert output.prompt_token_ids == engine.tokenizer.encode(text, False)[-12:]


@pytest.mark.parametrize("keep", [0, -2, 2**40])
def test_what_it_cannot_be(keep):
    with pytest.raises(RequestError, match=f"truncate_prompt_tokens={keep}"):
        SamplingParams(truncate_prompt_tokens=keep)


def test_more_than_the_model_takes_is_still_too_long(engine):
    with pytest.raises(RequestError, match="the model takes 64"):
        engine.generate([LONG], wish(64))
