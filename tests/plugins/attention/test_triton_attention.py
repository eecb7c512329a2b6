"""The Triton backend against the reference, in Triton's interpreter (float32: its dot is wrong for bfloat16)."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined: before the imports below
pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu runs these on the GPU itself")

from attention_cases import Case, build, spec  # noqa: E402

from core.kernels.launch import fixed_order  # noqa: E402
from plugins.attention.torch.reference import paged_attention_reference  # noqa: E402
from plugins.attention.triton.backend import TritonBackend  # noqa: E402

DECODES = [(1, 0), (1, 15), (1, 16), (1, 40), (1, 6)]
MIXED = [(1, 30), (1, 3), (17, 0), (5, 20), (33, 0), (16, 16), (2, 0)]
CASES = {
    "decodes": Case(spec(), DECODES),
    "decodes, one head a group": Case(spec(3, 3), DECODES),
    "decodes, group of 7": Case(spec(7, 1, 32), DECODES),
    "decodes, head_dim 20": Case(spec(4, 2, 20), DECODES),
    "decodes, window": Case(spec(window=9), DECODES),
    "decodes, soft cap": Case(spec(soft_cap=5.0), DECODES),
    "decodes, alibi": Case(spec(alibi_slopes=(0.5, 0.25, 0.125, 0.06)), DECODES),
    "decodes, padded rows": Case(spec(), DECODES[:2], padding=2),
    "one long decode, split": Case(spec(2, 1), [(1, 400)]),
    "one long decode, split, window": Case(spec(2, 1, window=300), [(1, 400)], block_size=32),
    "decodes that share a prefix": Case(spec(), [(1, 48), (1, 50), (1, 63), (1, 90)], common=48),
    "decodes that share a prefix, padded rows": Case(spec(), [(1, 64), (1, 70)], padding=2, common=64),
    "decodes that share a prefix, soft cap": Case(spec(soft_cap=5.0), [(1, 40), (1, 50)], common=32),
    "decodes that share a prefix, window": Case(spec(window=20), [(1, 40), (1, 50)], common=32),
    "decodes that share a long prefix, split": Case(spec(2, 1), [(1, 200), (1, 430)], common=192),
    "prompts": Case(spec(), [(17, 0), (2, 0), (33, 0)]),
    "mixed": Case(spec(), MIXED),
    "mixed, head_dim 20": Case(spec(4, 2, 20), MIXED[:4]),
    "mixed, window": Case(spec(window=9), MIXED),
    "mixed, soft cap": Case(spec(soft_cap=5.0), MIXED[:4]),
    "mixed, alibi": Case(spec(alibi_slopes=(0.5, 0.25, 0.125, 0.06)), MIXED[:4]),
    "mixed, blocks of 64": Case(spec(2, 1), MIXED, block_size=64),
}


@pytest.mark.parametrize("order", [False, True], ids=["fastest", "fixed order"])
@pytest.mark.parametrize("name", CASES)
def test_forward(name: str, order: bool) -> None:
    case = CASES[name]
    built = build(case)
    backend = TritonBackend(torch.device("cpu"))
    with fixed_order(order):
        backend.plan(built.batch)
        out = backend.forward(case.spec, built.query, built.key, built.value, built.cache, built.batch)
    expected = paged_attention_reference(case.spec, built.query, *built.filled, built.batch)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    for got, wanted in zip(built.cache, built.filled, strict=True):
        torch.testing.assert_close(got, wanted, equal_nan=True)


@pytest.mark.parametrize("order", [False, True], ids=["fastest", "fixed order"])
@pytest.mark.parametrize("lengths", [MIXED, MIXED[:2], MIXED[2:]], ids=["mixed", "decodes", "prompts"])
def test_a_mixed_step_as_it_is_captured(lengths: list[tuple[int, int]], order: bool) -> None:
    """Every request is in both launches, and the device alone knows which are decodes; rows and tokens are padded."""
    with fixed_order(order):
        check_captured(lengths)


def check_captured(lengths: list[tuple[int, int]]) -> None:
    case = Case(spec(), lengths)
    built = build(case)
    meta = built.batch.attention
    expected = paged_attention_reference(case.spec, built.query, *built.filled, built.batch)
    backend = TritonBackend(torch.device("cpu"))
    words = np.zeros(backend.graph_words(64), np.int32)
    n = meta.num_decodes
    assert backend.graph_fill(words, meta.query_lens_host[n:], meta.seq_lens_host[n:], n)
    rows, tokens = len(lengths) + 2, meta.num_tokens + 5
    grow = lambda t, size, value: torch.cat([t, torch.full((size - len(t), *t.shape[1:]), value, dtype=t.dtype)])  # noqa: E731
    is_decode = torch.arange(rows) < n
    meta.seq_lens = grow(meta.seq_lens, rows, 0)
    meta.decode_lens = torch.where(is_decode, meta.seq_lens, 0).int()
    meta.query_start_loc = grow(meta.query_start_loc, rows + 1, meta.num_tokens)
    meta.block_table = grow(meta.block_table, rows, 0)
    meta.slot_mapping = grow(meta.slot_mapping, tokens, -1)
    meta.num_requests = meta.num_decodes = rows
    meta.state = backend.graph_state(torch.from_numpy(words))
    q, k, v = (grow(t, tokens, 0.5) for t in (built.query, built.key, built.value))
    out = backend.forward(case.spec, q, k, v, built.cache, built.batch)
    torch.testing.assert_close(out[: len(expected)], expected, rtol=1e-4, atol=1e-5)
    for got, wanted in zip(built.cache, built.filled, strict=True):
        torch.testing.assert_close(got, wanted, equal_nan=True)


def test_a_captured_step_has_room_for_so_many_prompts() -> None:
    backend = TritonBackend(torch.device("cpu"))
    words = np.zeros(backend.graph_words(64), np.int32)
    assert not backend.graph_fill(words, np.full(40, 2, np.int32), np.full(40, 2, np.int32), 0)


@pytest.mark.parametrize("norm", [False, True])
def test_forward_rope(norm: bool) -> None:
    from core.kernels.references import rope_and_cache_reference

    case = Case(spec(), MIXED[:4])
    built = build(case)
    g = torch.Generator().manual_seed(1)
    qkv = torch.cat([built.query, built.key, built.value], 1).flatten(1)
    cos_sin = torch.randn(64, 16, generator=g)
    weights = (torch.randn(16, generator=g), torch.randn(16, generator=g)) if norm else (None, None)
    expected_qkv, cache = qkv.clone(), tuple(c.clone() for c in built.cache)
    meta = built.batch.attention
    rope_and_cache_reference(expected_qkv, cos_sin, built.batch.positions, meta.slot_mapping, *cache, 4, *weights, 1e-6)
    expected = paged_attention_reference(
        case.spec, expected_qkv.view(-1, 8, 16)[:, :4].contiguous(), cache[0], cache[1], built.batch
    )
    backend = TritonBackend(torch.device("cpu"))
    backend.plan(built.batch)
    out = backend.forward_rope(case.spec, qkv, cos_sin, built.cache, built.batch, *weights, 1e-6)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_descriptors() -> None:
    from plugins.attention.triton.prefill import SMALL, prefill_attention

    case = Case(spec(), [(17, 0), (40, 0)])
    built = build(case)
    meta = built.batch.attention
    tiles = torch.tensor([(1, 2), (1, 1), (1, 0), (0, 1), (0, 0)], dtype=torch.int32)
    out = torch.full_like(built.query, float("nan"))
    prefill_attention(
        case.spec, built.query, built.key, built.value, meta.block_table, meta.query_start_loc, meta.seq_lens, tiles,
        out, paged=False, config=SMALL, tma=True,
    )  # fmt: skip
    expected = paged_attention_reference(case.spec, built.query, *built.filled, built.batch)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
