"""The Triton attention backend on a GPU: ragged sizes, poisoned caches and outputs, jumping block tables."""

from __future__ import annotations

import math
import random
import sys
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("no GPU", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).parents[1] / "plugins" / "attention"))
from attention_cases import Case, build, spec  # noqa: E402

from plugins.attention.torch.reference import paged_attention_reference  # noqa: E402
from plugins.attention.triton.backend import TritonBackend  # noqa: E402

EDGES = [(1, 0), (1, 14), (1, 15), (1, 16), (1, 511), (1, 512), (1, 513), (1, 1100)]
MIXED = [*EDGES[:4], (127, 0), (128, 0), (129, 0), (2, 0), (64, 33), (200, 500), (17, 16), (300, 1)]
LLAMA = dict(heads=32, kv_heads=8, dim=128)
ALIBI = tuple(2.0 ** (-i / 4) for i in range(32))
CASES = {
    "decodes": Case(spec(**LLAMA), EDGES),
    "decodes, many": Case(spec(**LLAMA), EDGES * 24),
    "decodes, padded rows": Case(spec(**LLAMA), EDGES, padding=8),
    "decodes, window": Case(spec(**LLAMA, window=100), EDGES),
    "one long decode": Case(spec(**LLAMA), [(1, 9000)]),
    "one long decode, group of 7": Case(spec(7, 1, 64), [(1, 5000)]),
    "one decode, 40 heads share one": Case(spec(40, 1, 64), [(1, 700)]),
    "mixed": Case(spec(**LLAMA), MIXED),
    "mixed, window": Case(spec(**LLAMA, window=100), MIXED),
    "mixed, soft cap": Case(spec(**LLAMA, soft_cap=20.0), MIXED),
    "mixed, alibi": Case(spec(**LLAMA, alibi_slopes=ALIBI), MIXED),
    "decodes that share a prefix": Case(spec(**LLAMA), [(1, 2048 + 7 * i) for i in range(40)], common=2048),
    "decodes that share a prefix, padded rows": Case(spec(**LLAMA), [(1, 512), (1, 700)] * 8, padding=8, common=512),
    "decodes that share a prefix, soft cap": Case(spec(**LLAMA, soft_cap=20.0), [(1, 300), (1, 700)] * 8, common=288),
    "prompts": Case(spec(**LLAMA), [(1000, 0), (63, 0), (500, 0)]),
    **{f"mixed, head_dim {d}": Case(spec(8, 2, d), MIXED) for d in (64, 80, 96, 256)},
    **{f"mixed, blocks of {b}": Case(spec(**LLAMA), MIXED, block_size=b) for b in (32, 64, 128)},
}


@pytest.mark.parametrize("name", CASES)
def test_forward(name: str) -> None:
    case = CASES[name]
    built = build(case, "cuda", torch.bfloat16)
    backend = TritonBackend(torch.device("cuda"))
    backend.plan(built.batch)
    torch.full((64 << 20,), float("nan"), device="cuda")  # what torch.empty hands out next is poisoned
    out = backend.forward(case.spec, built.query, built.key, built.value, built.cache, built.batch)
    expected = paged_attention_reference(case.spec, built.query.float(), *built.filled, built.batch)
    error = ((out.float() - expected).norm() / expected.norm()).item()
    assert error < 1e-2, error
    for i in range(built.batch.attention.num_requests):  # a wrong short request must not hide behind long ones
        a, b = built.batch.attention.query_start_loc[i : i + 2].tolist()
        mine = ((out[a:b].float() - expected[a:b]).norm() / expected[a:b].norm().clamp(min=1e-3)).item()
        assert mine < 2e-2, (i, mine)
    for got, wanted in zip(built.cache, built.filled, strict=True):
        torch.testing.assert_close(got, wanted, equal_nan=True, rtol=0, atol=0)


def test_programs_that_end_one_request_and_begin_another_do_not_mix() -> None:
    """Many ragged batches behind each other: the counters of who has arrived end as they began."""
    from core.kernels.workspace import workspace

    backend = TritonBackend(torch.device("cuda"))
    rng = random.Random(0)
    for seed in range(24):
        lengths = [(1, rng.choice([0, 5, 300, 1100, 5000])) for _ in range(rng.choice([1, 3, 17, 64]))]
        built = build(Case(spec(**LLAMA), lengths, seed=seed), "cuda", torch.bfloat16)
        backend.plan(built.batch)
        out = backend.forward(spec(**LLAMA), built.query, built.key, built.value, built.cache, built.batch)
        expected = paged_attention_reference(spec(**LLAMA), built.query.float(), *built.filled, built.batch)
        assert ((out.float() - expected).norm() / expected.norm()).item() < 1e-2, lengths
        for _ in range(10):
            again = backend.forward(spec(**LLAMA), built.query, built.key, built.value, built.cache, built.batch)
            assert torch.equal(again, out), lengths
    torch.cuda.synchronize()
    assert not workspace(out.device, 1, 1)[1].any()


def test_float32() -> None:
    case = Case(spec(8, 2, 64), MIXED)
    built = build(case, "cuda", torch.float32)
    backend = TritonBackend(torch.device("cuda"))
    backend.plan(built.batch)
    out = backend.forward(case.spec, built.query, built.key, built.value, built.cache, built.batch)
    expected = paged_attention_reference(case.spec, built.query, *built.filled, built.batch)
    torch.testing.assert_close(out, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("norm", [False, True])
def test_forward_rope(norm: bool) -> None:
    from core.kernels.references import rope_and_cache_reference

    case = Case(spec(**LLAMA), MIXED)
    built = build(case, "cuda", torch.bfloat16)
    qkv = torch.cat([built.query, built.key, built.value], 1).flatten(1)
    angle = torch.randn(9100, 64, device="cuda")
    cos_sin = torch.cat([angle.cos(), angle.sin()], 1)
    weights = tuple(torch.rand(128, device="cuda").bfloat16() + 0.5 for _ in range(2)) if norm else (None, None)
    rotated, cache = qkv.clone(), tuple(c.clone() for c in built.cache)
    meta = built.batch.attention
    rope_and_cache_reference(rotated, cos_sin, built.batch.positions, meta.slot_mapping, *cache, 32, *weights, 1e-6)
    query = rotated.view(-1, 48, 128)[:, :32].contiguous()
    expected = paged_attention_reference(case.spec, query.float(), cache[0], cache[1], built.batch)
    backend = TritonBackend(torch.device("cuda"))
    backend.plan(built.batch)
    out = backend.forward_rope(case.spec, qkv, cos_sin, built.cache, built.batch, *weights, 1e-6)
    assert ((out.float() - expected).norm() / expected.norm()).item() < 1e-2
    torch.testing.assert_close(built.cache[0], cache[0], equal_nan=True, rtol=1e-2, atol=1e-2)


def test_a_captured_graph_serves_other_lengths() -> None:
    case = Case(spec(**LLAMA), [(1, 2000)] * 3 + [(1, 100)], padding=4)
    built = build(case, "cuda", torch.bfloat16)
    backend = TritonBackend(torch.device("cuda"))
    backend.plan(built.batch)
    run = lambda: backend.forward(case.spec, built.query, built.key, built.value, built.cache, built.batch)  # noqa: E731
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    other = build(
        Case(spec(**LLAMA), [(1, 5), (1, 1999), (1, 16), (1, 1030)], padding=4, seed=9), "cuda", torch.bfloat16
    )
    meta, new = built.batch.attention, other.batch.attention
    for target, source in (
        (meta.seq_lens, new.seq_lens), (meta.slot_mapping, new.slot_mapping),
        (built.query, other.query), (built.key, other.key), (built.value, other.value),
    ):  # fmt: skip
        target.copy_(source)
    width = min(new.block_table.shape[1], meta.block_table.shape[1])
    meta.block_table.zero_()
    meta.block_table[:, :width] = new.block_table[:, :width]
    blocks = min(other.cache[0].shape[0], built.cache[0].shape[0])
    assert blocks == other.cache[0].shape[0]
    for mine, theirs in zip(built.cache, other.cache, strict=True):
        mine[:blocks] = theirs
    out.fill_(float("nan"))
    graph.replay()
    expected = paged_attention_reference(case.spec, other.query.float(), *other.filled, other.batch)
    assert ((out.float() - expected).norm() / expected.norm()).item() < 1e-2
    assert (out[4:] == 0).all()
    assert math.isfinite(out.float().sum().item())


@pytest.mark.parametrize("order", [False, True], ids=["fastest", "fixed order"])
@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2], ids=["e4m3", "e5m2"])
def test_fp8_cache(kind: torch.dtype, order: bool) -> None:
    """What is stored is the number next to it, and attention is over what is stored."""
    from core.kernels.launch import fixed_order

    case = Case(spec(**LLAMA), [*EDGES[1:], (64, 33), (200, 500), (17, 16), (300, 1)])
    built = build(case, "cuda", torch.bfloat16)
    cache = tuple(c.to(kind) for c in built.cache)
    filled = tuple(c.to(kind).to(torch.bfloat16) for c in built.filled)
    backend = TritonBackend(torch.device("cuda"))
    with fixed_order(order):
        backend.plan(built.batch)
        out = backend.forward(case.spec, built.query, built.key, built.value, cache, built.batch)
    for got, wanted in zip(cache, filled, strict=True):
        torch.testing.assert_close(got.to(torch.bfloat16), wanted, equal_nan=True, rtol=0, atol=0)
    expected = paged_attention_reference(case.spec, built.query.float(), *filled, built.batch)
    assert ((out.float() - expected).norm() / expected.norm()).item() < 1e-2


def test_an_fp8_cache_in_the_engine(checkpoint) -> None:
    """Half the bytes; forked samples copy blocks; tokens come alike with graphs and without."""
    from core import Engine, SamplingParams

    options = {
        "skip_tokenizer_init": True,
        "dtype": "bfloat16",
        "num_blocks": 256,
        "max_num_seqs": 16,
        "enable_prefix_caching": False,
    }
    params = SamplingParams(n=3, temperature=1.0, seed=4, max_tokens=24, ignore_eos=True)
    prompts = [[7 * i % 380 + 1 for i in range(n)] for n in (5, 40, 100)]
    with Engine(str(checkpoint("llama")), **options) as e:
        wide = e.ready.memory["kv_cache"]
    for kind in ("fp8", "fp8_e5m2"):
        with Engine(str(checkpoint("llama")), kv_cache_dtype=kind, **options) as e:
            assert e.ready.memory["kv_cache"] * 2 == wide
            first = [[s.token_ids for s in o.outputs] for o in e.generate(prompts, params)]
            assert first == [[s.token_ids for s in o.outputs] for o in e.generate(prompts, params)]
            assert all(len({tuple(t) for t in samples}) > 1 for samples in first)
