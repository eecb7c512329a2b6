"""Every kernel of core/kernels against its reference, in Triton's interpreter (float32: its dot is wrong for bfloat16)."""

from __future__ import annotations

import dataclasses
import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined: before the imports below
pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu runs these on the GPU itself")

from core.kernels import (  # noqa: E402
    activation,
    batch,
    fixed_linear,
    linear_configs,
    references,
    rms_norm,
    rope,
    sampling,
    skinny_linear,
)
from core.sampling.sampler import sample_reference  # noqa: E402


def close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [16, 63, 200])
def test_rms_norm(size: int) -> None:
    x, residual, weight = torch.randn(5, size), torch.randn(5, size), torch.randn(size)
    close(rms_norm.rms_norm(x, weight, 1e-5), references.rms_norm_reference(x, weight, 1e-5))
    expected = references.add_rms_norm_reference(x, residual, weight, 1e-5)
    normed, total = rms_norm.add_rms_norm(x, residual, weight, 1e-5)
    close(normed, expected[0])
    close(total, expected[1])
    wide = torch.randn(5, 2 * size)[:, :size]  # rows that lie apart
    close(rms_norm.rms_norm(wide, weight, 1e-5), references.rms_norm_reference(wide, weight, 1e-5))


def test_rms_norm_refuses_a_weight_of_another_size() -> None:
    with pytest.raises(ValueError, match="norm's weight has shape"):
        rms_norm.rms_norm(torch.randn(2, 8), torch.randn(9), 1e-5)


@pytest.mark.parametrize("size", [7, 1030])
def test_silu_and_mul(size: int) -> None:
    x = torch.randn(3, 2 * size)
    close(activation.silu_and_mul(x), references.silu_and_mul_reference(x))


@pytest.mark.parametrize("tokens", [5, 70])
@pytest.mark.parametrize(("dim", "rotary", "norm"), [(16, 16, False), (16, 16, True), (20, 12, False), (20, 12, True)])
def test_rope_and_cache(tokens: int, dim: int, rotary: int, norm: bool) -> None:
    heads, kv_heads = 3, 1
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * dim)
    cos_sin, positions = torch.randn(100, rotary), torch.randint(0, 100, (tokens,))
    slots = torch.randperm(80)[:tokens]
    slots[2] = -1
    weights = (torch.randn(dim), torch.randn(dim)) if norm else (None, None)
    cache = [torch.zeros(5, 16, kv_heads, dim) for _ in range(2)]
    expected_cache, expected = [c.clone() for c in cache], qkv.clone()
    references.rope_and_cache_reference(expected, cos_sin, positions, slots, *expected_cache, heads, *weights)
    close(rope.rope_and_cache(qkv, cos_sin, positions, slots, *cache, heads, *weights), expected)
    close(cache[0], expected_cache[0])
    close(cache[1], expected_cache[1])


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 16, 19])
def test_skinny_linear(rows: int, silu: bool) -> None:
    inputs, outputs = 384, 64
    x, weight = torch.randn(rows, inputs), torch.randn(outputs * (1 + silu), inputs)
    bias = None if silu else torch.randn(outputs)
    expected = skinny_linear.skinny_linear_reference(x, weight, bias, silu)
    got = skinny_linear.skinny_linear(x, weight, bias, silu)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-3)
    if rows > 1 and not silu:
        for swap in (False, True):
            config = skinny_linear.DotConfig(32, 64, 2, swap=swap, splits=3)
            for _ in range(2):  # the second finds the counters as the first left them
                got = skinny_linear.skinny_linear(x, weight, bias, silu, config)
                torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-3)


def test_no_kernel_for_odd_shapes() -> None:
    assert linear_configs.choose(1, 64, 100, False, True) is None
    assert linear_configs.choose(4, 50, 256, False, True) is None
    assert linear_configs.choose(40, 64, 256, False, True) is None


def test_configurations_divide_their_shapes() -> None:
    for (outputs, inputs, silu), found in linear_configs.FEW.items():
        for most, config in found:
            assert (linear_configs.choose(most, outputs, inputs, silu, True) is None) == (config is None)
            assert most <= 16 or not isinstance(config, linear_configs.DotConfig) or most <= 32
            assert linear_configs.choose(1, outputs, inputs, silu, False) is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sample(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    vocab = 500
    wishes = [
        (0, 1, 0, 0),
        (1, 1, 0, 0),
        (0.7, 1, 0, 20),
        (1, 0.8, 0, 0),
        (1, 1, 0.1, 0),
        (0.9, 0.9, 0.02, 50),
        (2, 1, 0, 1),
    ]
    floats = torch.zeros(9, 6)
    floats[: len(wishes), :3] = torch.tensor([w[:3] for w in wishes])
    top_k = torch.zeros(9, dtype=torch.int64)
    top_k[: len(wishes)] = torch.tensor([w[3] for w in wishes])
    seeds = torch.randint(-(2**62), 2**62, (9,))
    rows = torch.arange(len(wishes)).repeat(4)
    positions = torch.randint(0, 1000, (len(rows),))
    logits = (torch.randn(len(rows), vocab) * 3).to(dtype)
    token_ids = torch.zeros(9, 1001, dtype=torch.int32)
    tokens, finite = sampling.sample(logits, rows, floats, top_k, seeds, positions, token_ids=token_ids)
    expected = sample_reference(logits, rows, floats, top_k, seeds, positions)
    assert torch.equal(tokens, expected)
    assert finite.all()
    assert torch.equal(token_ids[rows, positions].long(), tokens)


WISHES = {
    "plain": (0.9, 1, 0, 0),
    "few": (0.9, 1, 0, 5),
    "more tokens than chunks are held": (1.1, 1, 0, 30),
    "more tokens than held chunks have": (1, 0.9, 0, 300),
    "top-p": (0.3, 0.5, 0, 0),
    "top-p of a flat distribution": (5, 0.97, 0, 0),
    "min-p": (0.5, 1, 0.2, 0),
    "min-p of a flat distribution": (5, 1, 0.01, 0),
    "min-p and top-p, flat": (5, 0.9, 0.05, 0),
    "all three": (0.8, 0.9, 0.02, 6),
    "one": (1, 1, 0, 1),
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("values", ["all differ", "bfloat16", "peaked"])
@pytest.mark.parametrize("wish", WISHES)
def test_sample_from_many_pieces(wish: str, values: str, masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Filters that the held chunks can answer, and those that need the whole row."""
    for name, size in (("PIECE", 128), ("CHUNK", 4), ("MOST_CHUNKS", 8)):
        monkeypatch.setattr(sampling, name, size)
    torch.manual_seed(len(wish))
    n, vocab = 3, 300
    logits = torch.randn(n, vocab) * (12 if values == "peaked" else 2)
    if values == "bfloat16":  # many are equal
        logits = logits.bfloat16()
    floats = torch.zeros(1, 6)
    floats[0, :3] = torch.tensor(WISHES[wish][:3])
    top_k = torch.tensor([WISHES[wish][3]])
    seeds, rows, positions = torch.tensor([77]), torch.zeros(n, dtype=torch.int64), torch.arange(n)
    masks, allowed = None, torch.ones(n, vocab, dtype=torch.bool)
    if masked:
        words = torch.randint(-(2**31), 2**31 - 1, (n, 10), dtype=torch.int32)
        words[1, 1:] = 0  # a few tokens of the first word alone
        lines = torch.arange(n)
        masks = (lines, words)
        allowed = (((words[:, :, None] >> torch.arange(32)) & 1).flatten(1)[:, :vocab] != 0)[lines]
    tokens, finite = sampling.sample(logits, rows, floats, top_k, seeds, positions, masks=masks)
    expected = sample_reference(logits.masked_fill(~allowed, float("-inf")), rows, floats, top_k, seeds, positions)
    assert finite.all()
    assert torch.equal(tokens, expected)


def test_sample_with_bitmask_and_broken_logits() -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 70)
    logits[1, 5] = float("nan")
    logits[2, 66] = 50.0
    bits = torch.full((2, 3), -1, dtype=torch.int32)
    bits[1] = 0
    bits[1, 1] = 1 << 7  # token 39 alone
    floats = torch.zeros(4, 6)
    floats[:, 0] = torch.tensor([0.0, 1.0, 0.0, 1.0])
    floats[:, 1] = 1.0
    zeros = torch.zeros(4, dtype=torch.int64)
    rows, lines = torch.arange(4), torch.tensor([0, 0, 1, 1])
    tokens, finite = sampling.sample(logits, rows, floats, zeros, zeros, zeros, masks=(lines, bits))
    assert finite.tolist() == [True, False, True, True]
    assert int(tokens[0]) == int(logits[0].argmax())
    assert tokens[2:].tolist() == [39, 39]


def test_prepare_decodes() -> None:
    g = torch.Generator().manual_seed(0)
    token_ids = torch.randint(0, 1000, (6, 101), generator=g, dtype=torch.int32)
    table = torch.randint(0, 50, (6, 7), generator=g, dtype=torch.int32)
    packed = torch.tensor([[3, 0, 5, 1, -1, -1], [0, 15, 16, 99, 7, 0]], dtype=torch.int32)

    def outputs() -> list[torch.Tensor]:
        made = [torch.full((6,), -7, dtype=torch.int64) for _ in range(3)]
        return [*made, torch.full((6,), -7, dtype=torch.int32), torch.full((6, 7), -7, dtype=torch.int32)]

    got, expected = outputs(), outputs()
    batch.prepare_decodes(packed, token_ids, table, 16, *got)
    batch.prepare_decodes_reference(packed, token_ids, table, 16, *expected)
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


def test_prepare_mixed() -> None:
    g = torch.Generator().manual_seed(0)
    token_ids = torch.randint(0, 1000, (6, 101), generator=g, dtype=torch.int32)
    table = torch.randint(0, 50, (6, 7), generator=g, dtype=torch.int32)
    # two decodes, two prompts (one with earlier context), two rows of padding, 3 tokens of padding
    rows, computed, starts = [3, 0, 5, 1, -1, -1], [0, 16, 0, 15, 0, 0], [0, 1, 2, 35, 40, 40, 40]
    packed = torch.tensor([*rows, *computed, *starts, 2], dtype=torch.int32)

    def outputs() -> list[torch.Tensor]:
        made = [torch.full((43,), -7, dtype=torch.int64) for _ in range(3)]
        lengths = [torch.full((6,), -7, dtype=torch.int32) for _ in range(2)]
        return [*made, *lengths, torch.full((6, 7), -7, dtype=torch.int32)]

    got, expected = outputs(), outputs()
    batch.prepare_mixed(packed, 6, token_ids, table, 16, *got)
    batch.prepare_mixed_reference(packed, 6, token_ids, table, 16, *expected)
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)
    assert expected[3].tolist() == [1, 17, 33, 20, 0, 0] and expected[4].tolist() == [1, 17, 0, 0, 0, 0]


@pytest.mark.parametrize(("outputs", "inputs"), [(48, 40), (33, 512), (16, 1024)])
def test_fixed_linear(outputs: int, inputs: int) -> None:
    weight, bias, x = torch.randn(outputs, inputs), torch.randn(outputs), torch.randn(37, inputs)
    whole = fixed_linear.fixed_linear(x, weight, bias)
    torch.testing.assert_close(whole, references.linear_reference(x, weight, bias), rtol=1e-4, atol=1e-4)
    serial = dataclasses.replace(fixed_linear.SMALL, parallel=False)
    assert torch.equal(fixed_linear.fixed_linear(x, weight, bias, serial), whole)
    for begin, end in ((0, 1), (5, 22), (36, 37)):
        assert torch.equal(fixed_linear.fixed_linear(x[begin:end], weight, bias), whole[begin:end])


def test_splits_depend_on_the_weight_alone() -> None:
    assert [fixed_linear.choose_splits(*s) for s in ((4096, 4096), (4096, 14336), (128256, 4096), (64, 96))] == [
        2,
        2,
        1,
        1,
    ]
