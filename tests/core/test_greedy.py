"""Steps whose every row only wants its likeliest token take a kernel of their own; all others the sampler. Either gives the same."""

from __future__ import annotations

import msgspec
import pytest

pytest.importorskip("numba")
from core import Engine, GuidedDecodingParams, SamplingParams
from core.kernels import dispatch
from core.runner.recordings import StepRecordings

PROMPTS = [[5, 6, 7], [8, 9], [300, 2, 17, 4]]


@pytest.fixture(scope="module")
def engine():
    with Engine("demo", enable_prefix_caching=False) as engine:
        yield engine


@pytest.fixture
def calls(monkeypatch):
    """How many rows each step had whose tokens the kernel chose, alone or as a part of a recorded step."""
    counts: list[int] = []
    kernel, chosen = dispatch.greedy, StepRecordings.chosen
    monkeypatch.setattr(
        dispatch, "greedy", lambda logits, *more: (counts.append(len(logits)), kernel(logits, *more))[1]
    )
    monkeypatch.setattr(StepRecordings, "chosen", lambda self, count: (counts.append(count), chosen(self, count))[1])
    return counts


def tokens(engine, *params: SamplingParams) -> list[list[int]]:
    return [o.outputs[0].token_ids for o in engine.generate(PROMPTS[: len(params)], list(params))]


def greedy(**more) -> SamplingParams:
    return SamplingParams(**{"temperature": 0, "max_tokens": 12, "ignore_eos": True, **more})


def test_the_sampler_s_tokens(engine, calls, monkeypatch):
    mine = tokens(engine, greedy(), greedy(), greedy())
    assert calls == [3] * 12
    monkeypatch.setattr(dispatch, "on_cpu", lambda x: False)
    monkeypatch.setattr(engine._loop.executor.runner, "graphs", None)
    assert tokens(engine, greedy(), greedy(), greedy()) == mine and calls == [3] * 12


@pytest.mark.parametrize(
    "params",
    [
        greedy(temperature=1, seed=3),
        greedy(logprobs=0),
        greedy(repetition_penalty=1.3),
        greedy(logit_bias={7: 100.0}),
        greedy(min_tokens=12, ignore_eos=False),
        greedy(allowed_token_ids=(7, 9, 11)),
        greedy(guided_decoding=GuidedDecodingParams(regex="[abc]{40}")),
    ],
    ids=["random", "logprobs", "penalty", "bias", "min_tokens", "allowed", "guided"],
)
def test_a_row_that_wants_more_takes_all_rows_to_the_sampler(engine, calls, params):
    """Until it ends: then the kernel goes on with the others."""
    (alone,) = tokens(engine, greedy())
    (asked,) = tokens(engine, params)
    del calls[:]
    short = msgspec.structs.replace(params, max_tokens=4, min_tokens=min(params.min_tokens, 4))
    together = engine.generate([PROMPTS[0], PROMPTS[0]], [greedy(), short])
    assert together[0].outputs[0].token_ids == alone
    assert together[1].outputs[0].token_ids == asked[:4]
    assert calls == [1] * 8
