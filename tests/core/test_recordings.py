"""Decode steps that are recorded on a CPU give the tokens of those that are not, and what cannot be recorded is left alone."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys

import pytest
import torch

pytest.importorskip("numba")
from core import Engine, SamplingParams
from core.runner import recordings
from plugins.models.llama import LlamaMLP


def prompts() -> list[list[int]]:
    rng = random.Random(5)
    return [[rng.randrange(1, 384) for _ in range(n)] for n in (3, 17, 1, 30, 16)]


def answers(engine: Engine) -> list[list[int]]:
    """Of different lengths, so that the steps shrink; greedy and seeded ones."""
    params = [
        SamplingParams(temperature=i % 2, seed=i, max_tokens=5 + 9 * i, ignore_eos=True) for i in range(len(prompts()))
    ]
    return [o.outputs[0].token_ids for o in engine.generate(prompts(), params)]


def recorded(engine: Engine) -> recordings.StepRecordings:
    return engine._loop.executor.runner.graphs


@pytest.mark.parametrize("name", ["llama", "qwen2-window", "qwen3"])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_tokens(checkpoint, name, threads):
    options = {"skip_tokenizer_init": True, "num_threads": threads}
    with Engine(str(checkpoint(name)), enforce_eager=True, **options) as engine:
        assert recorded(engine) is None and "graphs" not in engine.ready.choices
        expected = answers(engine)
    with Engine(str(checkpoint(name)), **options) as engine:
        assert engine.ready.choices["graphs"] == "steps of few decodes are recorded"
        for _ in range(2):
            assert answers(engine) == expected
        assert set(recorded(engine)._recordings) == {1, 2, 3, 4, 5} and not recorded(engine).reason


def test_two_engines_take_turns(checkpoint):
    """Each has its own addresses."""
    with Engine(str(checkpoint("llama")), skip_tokenizer_init=True) as one:
        alone = answers(one)
        with Engine(str(checkpoint("qwen3")), skip_tokenizer_init=True) as other:
            others = answers(other)
            assert answers(one) == alone and answers(other) == others


def test_a_step_that_does_more_than_kernels_runs_as_it_did(checkpoint, monkeypatch):
    folder = str(checkpoint("llama"))
    with Engine(folder, skip_tokenizer_init=True) as engine:
        expected = answers(engine)
    plain = LlamaMLP.forward
    # dependent on the data: recorded, the number of the first step would stay
    monkeypatch.setattr(
        LlamaMLP, "forward", lambda self, x, residual: plain(self, x, residual) + 0 * float(x.abs().max())
    )
    with Engine(folder, skip_tokenizer_init=True) as engine:
        assert answers(engine) == expected
        assert not recorded(engine)._recordings and "does abs" in recorded(engine).reason


def test_sizes_share_their_buffers(checkpoint):
    with Engine(str(checkpoint("llama")), skip_tokenizer_init=True, max_num_seqs=4) as engine:
        answers(engine)
        found = recorded(engine)
        assert set(found._recordings) == {1, 2, 3, 4} and {len(b) for b in found._buffers} == {4}
        assert len({r.hidden.data_ptr() for r in found._recordings.values()}) == 1


def test_it_costs_no_import():
    """torch.utils._python_dispatch would bring sympy: 0.5 s and 76 MB at the first token."""
    code = (
        "import sys; from core import Engine, SamplingParams\n"
        "with Engine('demo') as engine:\n"
        "    engine.generate('Hi', SamplingParams(max_tokens=4, ignore_eos=True))\n"
        "    assert len(engine._loop.executor.runner.graphs._recordings) == 1\n"
        "assert 'sympy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_logits_that_are_not_finite_end_their_request_alone(checkpoint):
    with Engine(str(checkpoint("llama")), skip_tokenizer_init=True, enable_prefix_caching=False) as engine:
        expected = answers(engine)
        bad = 383
        table = engine._loop.executor.runner.model.model.embed_tokens.weight
        kept = table[bad].clone()
        with torch.inference_mode():
            table[bad] = float("nan")
        params = SamplingParams(temperature=0, max_tokens=9, ignore_eos=True)
        outputs = engine.generate([[5, bad], [5, 6]], params)
        assert [o.outputs[0].finish_reason for o in outputs] == ["error", "length"]
        with torch.inference_mode():
            table[bad] = kept
        assert answers(engine) == expected


# torch 2.11 says so of every trace
@pytest.mark.filterwarnings("ignore:Warning. Profiler clears events:UserWarning")
def test_a_trace_of_the_first_steps_does_not_end_recording(checkpoint, tmp_path):
    options = {"profile_dir": str(tmp_path), "profile_steps": 6}
    with Engine(str(checkpoint("llama")), skip_tokenizer_init=True, **options) as engine:
        answers(engine)
        assert set(recorded(engine)._recordings) == {1, 2, 3, 4, 5} and not recorded(engine).reason
    (trace,) = tmp_path.iterdir()
    names = {e.get("name") for e in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]}
    assert names >= {"linear", "decode_attention", "rope_and_cache", "rms_norm"}


@pytest.mark.parametrize(
    "strange",
    [lambda x: torch.empty(5), lambda x: torch.empty_like(x[0, 0]), lambda x: torch.reshape(input=x, shape=(-1,))],
    ids=["a number", "no dimension", "by name"],
)
def test_calls_of_other_forms_are_no_error(checkpoint, monkeypatch, strange):
    folder = str(checkpoint("llama"))
    with Engine(folder, skip_tokenizer_init=True) as engine:
        expected = answers(engine)
    plain = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x, residual: (strange(x), plain(self, x, residual))[1])
    with Engine(folder, skip_tokenizer_init=True) as engine:
        assert answers(engine) == expected and recorded(engine).reason
