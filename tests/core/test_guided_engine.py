"""Constraints hold in the engine: batched with free requests, planned ahead, preempted, with n > 1; bad ones end alone."""

from __future__ import annotations

import json
import re

import pytest

from core import Engine, GuidedDecodingParams, SamplingParams
from core.errors import RequestError

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "maximum": 120}},
    "required": ["city", "age"],
    "additionalProperties": False,
}


def guided(seed: int, max_tokens: int = 80, n: int = 1, **constraint) -> SamplingParams:
    constraint = GuidedDecodingParams(**constraint)
    return SamplingParams(seed=seed, temperature=1.2, max_tokens=max_tokens, n=n, guided_decoding=constraint)


@pytest.mark.parametrize(
    "options",
    [{}, {"async_scheduling": True}, {"num_blocks": 12, "max_model_len": 160, "async_scheduling": True}],
    ids=["plain", "overlap", "preempted"],
)
def test_constraints_hold_in_a_mixed_batch(options):
    with Engine(**options) as engine:
        params = []
        for i in range(8):
            params += [
                guided(i, json=SCHEMA),
                guided(i, regex=r"[a-c]{3}-\d{4}"),
                guided(i, choice=("red", "green", "très bleu")),
                SamplingParams(seed=i, max_tokens=30, ignore_eos=True),
            ]
        outputs = [o.outputs[0] for o in engine.generate(["Some text"] * len(params), params)]
        for i in range(0, len(outputs), 4):
            document, pattern, choice, free = outputs[i : i + 4]
            if document.finish_reason == "stop":
                value = json.loads(document.text)
                assert set(value) == {"city", "age"} and value["age"] <= 120 and len(value["city"]) <= 12
            assert re.fullmatch(r"[a-c]{3}-\d{4}", pattern.text) and pattern.finish_reason == "stop"
            assert choice.text in ("red", "green", "très bleu")
            assert len(free.token_ids) == 30
        assert sum(o.finish_reason == "stop" for o in outputs[::4]) >= 4
        assert engine.stats().num_free_blocks == engine.stats().num_blocks
        if "num_blocks" in options:
            assert engine.stats().num_preemptions > 0
        (several,) = engine.generate("x", guided(3, n=3, regex="(yes|no|maybe)!"))
        assert all(re.fullmatch("(yes|no|maybe)!", o.text) for o in several.outputs)


def test_bad_constraints_end_their_own_request():
    with Engine() as engine:
        for bad in ({"json": {"type": "strin"}}, {"regex": "(["}, {"json": "{not json"}):
            with pytest.raises(RequestError):
                engine.generate("x", guided(0, **bad))
        with pytest.raises(RequestError, match="nosuch"):
            engine.generate("x", guided(0, choice=("a",), backend="nosuch"))
        assert engine.generate("x", guided(0, choice=("a",)))[0].outputs[0].text == "a"


def test_exactly_one_constraint():
    with pytest.raises(RequestError, match="exactly one"):
        GuidedDecodingParams(json={}, regex="a")
    with pytest.raises(RequestError, match="exactly one"):
        GuidedDecodingParams()
