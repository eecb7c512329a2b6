"""Jump-forward: tokens that a grammar forces are not sampled one by one, and nothing else is seen of it."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from core import Engine, GuidedDecodingParams, SamplingParams

SCHEMA = {
    "type": "object",
    "properties": {"name_of_the_first_person": {"enum": ["Ann", "Bo"]}, "the_number_of_years": {"type": "integer"}},
    "required": ["name_of_the_first_person", "the_number_of_years"],
    "additionalProperties": False,
}
TEXT = "once upon a time [0-9]{2} people lived in a small house by the (sea|lake) and were happy"
OPTIONS: list[dict[str, Any]] = [
    {},
    {"async_scheduling": True},
    {"enable_prefix_caching": False, "async_scheduling": True, "max_num_batched_tokens": 16},
]


def params(seed: int = 0, temperature: float = 0.0, max_tokens: int = 120, **more: Any) -> SamplingParams:
    constraint = GuidedDecodingParams(**{k: more.pop(k) for k in ("json", "regex", "whitespace_pattern") if k in more})
    return SamplingParams(seed=seed, temperature=temperature, max_tokens=max_tokens, guided_decoding=constraint, **more)


@pytest.fixture(scope="module", params=OPTIONS, ids=["plain", "overlap", "small chunks"])
def engine(request: pytest.FixtureRequest) -> Any:
    with Engine(**request.param) as made:
        yield made


def steps(engine: Engine, *args: Any) -> tuple[Any, int]:
    before = engine.stats().num_steps
    outputs = engine.generate(*args)
    return outputs, engine.stats().num_steps - before


def test_forced_text_takes_few_steps(engine: Engine) -> None:
    (output,), count = steps(engine, ["x"], params(regex=TEXT))
    (answer,) = output.outputs
    assert re.fullmatch(TEXT, answer.text) and answer.finish_reason == "stop"
    assert engine.tokenizer.decode(answer.token_ids, True) == answer.text
    assert count < len(answer.token_ids) * 0.7
    # a request with logprobs gets one for every token, so each is sampled
    (output,), slow = steps(engine, ["x"], params(regex=TEXT, logprobs=1))
    assert len(output.outputs[0].logprobs) == len(output.outputs[0].token_ids)
    assert slow >= len(output.outputs[0].token_ids) > count


def test_the_same_as_sampled_one_by_one(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy: the keys and values that jumped tokens leave are those of sampled ones."""
    wishes = [params(json=SCHEMA, whitespace_pattern=""), params(regex=TEXT), SamplingParams(temperature=0)]
    prompts = ["Ann is 7 years old", "Tell a story", "What is block_size?"]
    jumped, few = steps(engine, prompts, wishes)
    kept = [(o.outputs[0].text, o.outputs[0].token_ids) for o in jumped]
    with monkeypatch.context() as patch:
        patch.setattr(engine._loop._guided._manager, "forced", lambda handle: [])
        sampled, many = steps(engine, prompts, wishes)
    assert few < many
    assert kept[2] == (sampled[2].outputs[0].text, sampled[2].outputs[0].token_ids)
    for (text, _), output in zip(kept[:2], sampled[:2], strict=True):
        # forced text may be cut into other tokens by the model; what it chooses freely is the same here
        assert text == output.outputs[0].text


def test_mixed_with_free_rows_and_n(engine: Engine) -> None:
    wishes = [params(i, 1.3, regex=TEXT, n=2) if i % 2 else params(i, 1.3, json=SCHEMA) for i in range(6)]
    free = SamplingParams(seed=5, max_tokens=40, ignore_eos=True, temperature=1.0)
    outputs = engine.generate(["Some text"] * 7, [*wishes, free])
    for i, output in enumerate(outputs[:6]):
        for answer in output.outputs:
            if i % 2:
                assert re.fullmatch(TEXT, answer.text)
            elif answer.finish_reason == "stop":
                assert set(json.loads(answer.text)) == set(SCHEMA["required"])
    alone = engine.generate(["Some text"], [free])[0].outputs[0]
    assert outputs[6].outputs[0].token_ids == alone.token_ids
    assert engine.stats().num_free_blocks == engine.stats().num_blocks


@pytest.mark.parametrize("max_tokens", [1, 2, 5, 9, 14])
def test_max_tokens_is_kept(engine: Engine, max_tokens: int) -> None:
    (output,) = engine.generate(["x"], params(regex=TEXT, max_tokens=max_tokens))
    assert len(output.outputs[0].token_ids) == max_tokens and output.outputs[0].finish_reason == "length"


def test_streaming_tells_every_token_once(engine: Engine) -> None:
    text, tokens = "", []
    for delta in engine.stream("x", params(regex=TEXT)):
        text += delta.outputs[0].text
        tokens += list(delta.outputs[0].token_ids)
    assert re.fullmatch(TEXT, text)
    (whole,) = engine.generate(["x"], params(regex=TEXT))
    assert tokens == list(whole.outputs[0].token_ids)


def test_stop_strings_and_ids_inside_forced_text(engine: Engine) -> None:
    (output,) = engine.generate(["x"], params(regex=TEXT, stop=("small house",)))
    assert output.outputs[0].text.endswith("lived in a ") and output.outputs[0].stop_reason == "small house"
    (whole,) = engine.generate(["x"], params(regex=TEXT))
    ids = list(whole.outputs[0].token_ids)
    end = ids[len(ids) // 2]
    (output,) = engine.generate(["x"], params(regex=TEXT, stop_token_ids=(end,)))
    got = list(output.outputs[0].token_ids)
    assert got[-1] == end and end not in got[:-1] and output.outputs[0].stop_reason == end


def test_penalties_see_jumped_tokens(engine: Engine) -> None:
    wish = params(3, 1.0, regex=TEXT, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.2, min_p=0.05)
    (output,) = engine.generate(["x"], wish)
    assert re.fullmatch(TEXT, output.outputs[0].text)


def test_aborted_rows_leave_nothing(engine: Engine) -> None:
    for index, _ in enumerate(engine.stream("x", params(regex=TEXT))):
        if index == 1:
            break
    (output,) = engine.generate(["x"], SamplingParams(temperature=0, max_tokens=8))
    assert len(output.outputs[0].token_ids) <= 8
    assert engine.stats().num_free_blocks == engine.stats().num_blocks


@pytest.mark.parametrize("overlap", [False, True])
def test_preempted(overlap: bool) -> None:
    with Engine(num_blocks=14, max_model_len=160, async_scheduling=overlap) as engine:
        wishes = [params(i, 1.2, 90, regex=TEXT) if i % 3 else params(i, 1.2, 90, json=SCHEMA) for i in range(12)]
        outputs = engine.generate(["Some text"] * 12, wishes)
        assert engine.stats().num_preemptions > 0
        for i, output in enumerate(outputs):
            answer = output.outputs[0]
            if i % 3:
                assert re.fullmatch(TEXT, answer.text), answer.text
            else:
                assert answer.finish_reason == "length" or json.loads(answer.text)
            assert len(answer.token_ids) <= 90
        assert engine.stats().num_free_blocks == engine.stats().num_blocks


def test_a_prefix_that_was_jumped_is_cached_right() -> None:
    with Engine() as engine:
        (first,) = engine.generate(["Tell a story: "], params(regex=TEXT))
        ids = [*first.prompt_token_ids, *first.outputs[0].token_ids]
        wish = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
        (warm,) = engine.generate([{"prompt_token_ids": ids}], wish)
        engine.reset_prefix_cache()
        (cold,) = engine.generate([{"prompt_token_ids": ids}], wish)
        assert warm.outputs[0].token_ids == cold.outputs[0].token_ids


# ---- edits against a grammar


@pytest.mark.parametrize("overlap", [False, True])
def test_the_grammar_wins_over_min_tokens_and_bad_words(overlap: bool) -> None:
    with Engine(async_scheduling=overlap) as engine:
        # the grammar has ended long before min_tokens: EOS is all that it allows
        (output,) = engine.generate(["x"], params(regex="(yes|no)", min_tokens=20, max_tokens=40))
        assert output.outputs[0].text in ("yes", "no") and output.outputs[0].finish_reason == "stop"
        assert len(output.outputs[0].token_ids) < 5
        # with a choice left, min_tokens holds
        (output,) = engine.generate(["x"], params(regex="[a-z ]*", min_tokens=15, max_tokens=15))
        assert len(output.outputs[0].token_ids) == 15
        (output,) = engine.generate(["x"], params(regex="(yes)+", bad_words=("yes", "y", "es"), max_tokens=9))
        assert re.fullmatch("(yes)*y?e?", output.outputs[0].text) and output.outputs[0].text
