"""Deterministic mode on a GPU: the same bits for a row, a token, a request, whatever else is computed with it."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("no GPU", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).parents[1] / "plugins" / "attention"))
from attention_cases import Case, build, spec  # noqa: E402

from core import Engine, SamplingParams  # noqa: E402
from core.kernels import dispatch, fixed_linear, references  # noqa: E402
from core.kernels.launch import fixed_order  # noqa: E402
from plugins.attention.torch.reference import paged_attention_reference  # noqa: E402
from plugins.attention.triton.backend import TritonBackend  # noqa: E402

BF = torch.bfloat16
WEIGHTS = [(6144, 4096), (4096, 14336), (28672, 4096), (1536, 96), (1000, 200)]


@pytest.mark.parametrize("dtype", [BF, torch.float32])
@pytest.mark.parametrize(("outputs", "inputs"), WEIGHTS)
def test_a_row_is_the_same_among_any_others(outputs: int, inputs: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(3000 if dtype is BF else 300, inputs, device="cuda").to(dtype)
    weight = (torch.randn(outputs, inputs, device="cuda") * 0.02).to(dtype)
    bias = torch.randn(outputs, device="cuda").to(dtype)
    whole = fixed_linear.fixed_linear(x, weight, bias)
    wanted = references.linear_reference(x.float(), weight.float(), bias.float())
    assert ((whole.float() - wanted).norm() / wanted.norm()).item() < (1e-2 if dtype is BF else 1e-5)
    for begin, end in ((0, 1), (7, 20), (20, 50), (3, 67), (100, 228), (0, 256), (1, 258)):
        for _ in range(2):  # the counters of the splits come back to zero
            assert torch.equal(fixed_linear.fixed_linear(x[begin:end], weight, bias), whole[begin:end]), (begin, end)


@pytest.mark.parametrize("rows", [1, 100, 127, 128, 500])
def test_a_norm_is_the_same_among_any_others(rows: int) -> None:
    x, weight = torch.randn(600, 4096, device="cuda").to(BF), torch.rand(4096, device="cuda").to(BF)
    with fixed_order(True):
        assert torch.equal(dispatch.rms_norm(x[:rows], weight, 1e-5), dispatch.rms_norm(x, weight, 1e-5)[:rows])


SPECS = {
    "llama": spec(32, 8, 128),
    "window": spec(32, 8, 128, window=100),
    "group of 7": spec(7, 1, 64),
    "one head a group": spec(4, 4, 96),
    "soft cap": spec(32, 8, 128, soft_cap=20.0),
    "head_dim 256": spec(8, 2, 256),
    "head_dim 16": spec(4, 2, 16),
}


@pytest.mark.parametrize("name", SPECS)
def test_attention_is_the_same_however_a_prompt_is_cut(name: str) -> None:
    """600 tokens whole; as a piece of 599 and a decode; in pieces; beside others. The last token's result is one."""
    s = SPECS[name]
    torch.manual_seed(1)
    query = torch.randn(600, s.num_heads, s.head_dim, device="cuda").to(BF)
    key, value = (torch.randn(600, s.num_kv_heads, s.head_dim, device="cuda").to(BF) for _ in range(2))
    backend = TritonBackend(torch.device("cuda"))
    results = []
    for cuts in ([600], [599, 1], [1, 200, 16, 383], [17] * 35 + [5]):
        got = []
        built = build(Case(s, [(1, 40), (600, 0), (30, 5)]), "cuda", BF)
        table, cache = built.batch.attention.block_table[1:2], built.cache
        others = build(Case(s, [(1, 40), (64, 0)]), "cuda", BF)
        at = 0
        for count in cuts:
            part = slice(at, at + count)
            step = build(Case(s, [(count, at)]), "cuda", BF).batch
            meta = step.attention
            places = torch.arange(at, at + count, device="cuda")
            meta.block_table = table
            meta.slot_mapping = table[0, places // 16].long() * 16 + places % 16
            with fixed_order(True):
                backend.plan(step)
                got.append(backend.forward(s, query[part], key[part], value[part], cache, step))
                backend.plan(others.batch)
                backend.forward(s, others.query, others.key, others.value, others.cache, others.batch)
            at += count
        results.append(torch.cat(got))
    for other in results[1:]:
        assert torch.equal(other, results[0])


@pytest.mark.parametrize("name", SPECS)
def test_attention_in_one_order_is_right(name: str) -> None:
    case = Case(SPECS[name], [(1, 0), (1, 511), (1, 700), (127, 0), (64, 33), (17, 16), (300, 1)])
    built = build(case, "cuda", BF)
    backend = TritonBackend(torch.device("cuda"))
    with fixed_order(True):
        backend.plan(built.batch)
        out = backend.forward(case.spec, built.query, built.key, built.value, built.cache, built.batch)
    expected = paged_attention_reference(case.spec, built.query.float(), *built.filled, built.batch)
    assert ((out.float() - expected).norm() / expected.norm()).item() < 1e-2


def small_engine(folder: Path, **options: object) -> Engine:
    return Engine(str(folder), **{"skip_tokenizer_init": True, "dtype": "bfloat16", "max_num_seqs": 32, **options})


@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral-window"])
def test_a_request_gets_the_same_tokens_whatever_else_runs(checkpoint, name: str) -> None:
    """Alone and eager; among others in graphs; chunked; preempted; with prefix hits; with logprobs to the last bit."""
    rng = random.Random(5)
    prompts = [[rng.randrange(1, 384) for _ in range(rng.choice([1, 9, 40, 100]))] for _ in range(24)]
    params = [
        SamplingParams(temperature=t, top_p=0.9, seed=i, max_tokens=40, ignore_eos=True, logprobs=1)
        for i, t in enumerate([0.0, 0.8] * 12)
    ]

    def read(outputs: list) -> list:
        return [(o.outputs[0].token_ids, [[t.logprob for t in p] for p in o.outputs[0].logprobs]) for o in outputs]

    folder = checkpoint(name)
    with small_engine(folder, deterministic=True, enforce_eager=True, enable_prefix_caching=False) as e:
        alone = read([e.generate(p, s)[0] for p, s in zip(prompts, params, strict=True)])
    together = {
        "graphs": {},
        "chunked": {"max_num_batched_tokens": 40},
        "preempted": {"num_blocks": 40, "max_model_len": 160},
        "few rows": {"max_num_seqs": 3},
    }
    for why, options in together.items():
        with (
            small_engine(folder, deterministic=True, num_blocks=512, **options)
            if "num_blocks" not in options
            else (small_engine(folder, deterministic=True, **options)) as e
        ):
            assert read(e.generate(prompts, params)) == alone, why
            assert read(e.generate(prompts, params)) == alone, f"{why}, with prefix hits"
            if why == "preempted":
                assert e.stats().num_preemptions > 0
    assert np.isfinite([p for _, rows in alone for row in rows for p in row]).all()
