"""The numba backend against the float32 reference: decodes read where they lie, mixed steps, heads of a fused projection."""

from __future__ import annotations

import pytest
import torch
from attention_cases import Case, build, spec

pytest.importorskip("numba")
from core.kernels.references import rope_and_cache_reference
from plugins.attention.numba.backend import NumbaBackend
from plugins.attention.torch.reference import paged_attention_reference

SPECS = {
    "groups": spec(),
    "one head": spec(1, 1, 64),
    "odd": spec(3, 1, 24),
    "window": spec(4, 4, 16, window=20),
    "window of one": spec(6, 2, 128, window=1),
    "soft cap": spec(soft_cap=5.0),
    "alibi": spec(alibi_slopes=(0.5, 0.25, 0.125, 0.0625)),
}
STEPS = {
    "first token": [(1, 0)],
    "one decode": [(1, 62)],
    "many lengths": [(1, 0), (1, 15), (1, 16), (1, 300), (1, 47)],
    "prompts": [(63, 0), (5, 0), (40, 0)],
    "chunks": [(7, 56), (33, 467)],
    "mixed": [(1, 499), (1, 1), (1, 48), (30, 40), (63, 0)],
}


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("kind", SPECS)
def test_mixed_steps(threads, kind, step):
    """Poison stands in every entry of the cache that no request owns."""
    built = build(Case(SPECS[kind], STEPS[step]))
    backend = NumbaBackend(torch.device("cpu"))
    backend.plan(built.batch)
    got = backend.forward(SPECS[kind], built.query, built.key, built.value, built.cache, built.batch)
    close(built.cache[0], built.filled[0])
    close(built.cache[1], built.filled[1])
    close(got, paged_attention_reference(SPECS[kind], built.query, *built.filled, built.batch))


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("kind", ["groups", "odd", "window", "soft cap"])
def test_from_the_projection(kind, step, norm):
    of = SPECS[kind]
    built = build(Case(of, STEPS[step]))
    qkv = torch.cat([built.query, built.key, built.value], 1).flatten(1)
    cos_sin = torch.randn(1000, of.head_dim)
    weights = (torch.randn(of.head_dim), torch.randn(of.head_dim)) if norm else ()
    expected_qkv, expected_cache = qkv.clone(), [c.clone() for c in built.cache]
    meta = built.batch.attention
    rope_and_cache_reference(
        expected_qkv, cos_sin, built.batch.positions, meta.slot_mapping, *expected_cache, of.num_heads, *weights
    )
    heads = expected_qkv.view(len(qkv), -1, of.head_dim)
    expected = paged_attention_reference(of, heads[:, : of.num_heads], *expected_cache, built.batch)
    backend = NumbaBackend(torch.device("cpu"))
    backend.plan(built.batch)
    got = backend.forward_rope(of, qkv, cos_sin, built.cache, built.batch, *weights)
    close(built.cache[0], expected_cache[0])
    close(got, expected)
