"""The kernels of core/kernels on a GPU, bfloat16, against their references."""

from __future__ import annotations

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("no GPU", allow_module_level=True)

from core.kernels import (
    activation,
    batch,
    dispatch,
    linear_configs,
    references,
    rms_norm,
    rope,
    sampling,
    skinny_linear,
    wide_linear,
)  # noqa: E402
from core.kernels.launch import fixed_order  # noqa: E402
from core.sampling.sampler import sample_reference  # noqa: E402

BF = torch.bfloat16


def rand(*shape: int, dtype: torch.dtype = BF) -> torch.Tensor:
    return torch.randn(*shape, device="cuda").to(dtype)


def error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((got.float() - wanted.float()).norm() / wanted.float().norm()).item()


@pytest.fixture(autouse=True)
def poison() -> None:
    torch.manual_seed(0)
    torch.full((32 << 20,), float("nan"), device="cuda")  # what torch.empty hands out next is poisoned


@pytest.mark.parametrize("rows", [1, 63, 500])
@pytest.mark.parametrize("size", [96, 1024, 4096, 5120])
def test_rms_norm(rows: int, size: int) -> None:
    x, residual, weight = rand(rows, size), rand(rows, size), rand(size)
    assert error(rms_norm.rms_norm(x, weight, 1e-5), references.rms_norm_reference(x, weight, 1e-5)) < 5e-3
    expected = references.add_rms_norm_reference(x, residual, weight, 1e-5)
    normed, total = rms_norm.add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(total, expected[1])
    assert error(normed, expected[0]) < 5e-3


@pytest.mark.parametrize("rows", [1, 63, 500])
def test_silu_and_mul(rows: int) -> None:
    x = rand(rows, 2 * 3000)
    assert error(activation.silu_and_mul(x), references.silu_and_mul_reference(x)) < 5e-3


@pytest.mark.parametrize("tokens", [1, 63, 500])
@pytest.mark.parametrize(
    ("dim", "rotary", "norm"), [(128, 128, False), (128, 128, True), (80, 32, False), (64, 32, True)]
)
def test_rope_and_cache(tokens: int, dim: int, rotary: int, norm: bool) -> None:
    heads, kv_heads = 12, 4
    qkv, cos_sin = rand(tokens, (heads + 2 * kv_heads) * dim), rand(1000, rotary, dtype=torch.float32)
    positions = torch.randint(0, 1000, (tokens,), device="cuda")
    slots = torch.randperm(640, device="cuda")[:tokens]
    slots[tokens // 2] = -1
    weights = (rand(dim), rand(dim)) if norm else (None, None)
    cache = [torch.zeros(40, 16, kv_heads, dim, device="cuda", dtype=BF) for _ in range(2)]
    expected_cache, expected = [c.clone() for c in cache], qkv.clone()
    references.rope_and_cache_reference(expected, cos_sin, positions, slots, *expected_cache, heads, *weights)
    assert error(rope.rope_and_cache(qkv, cos_sin, positions, slots, *cache, heads, *weights), expected) < 5e-3
    if tokens > 1:
        assert error(cache[0], expected_cache[0]) < 5e-3
    assert torch.equal(cache[1], expected_cache[1])


@pytest.mark.parametrize("rows", [1, 2, 15, 16, 17, 32])
@pytest.mark.parametrize(
    ("outputs", "inputs", "silu"),
    [(6144, 4096, False), (4096, 4096, False), (14336, 4096, True), (4096, 14336, False), (1024, 3072, False), (3072, 1024, True), (2560, 2048, False)],
)  # fmt: skip
def test_skinny_linear(rows: int, outputs: int, inputs: int, silu: bool) -> None:
    x, weight = rand(rows, inputs), rand(outputs * (1 + silu), inputs) * 0.02
    bias = None if silu else rand(outputs)
    config = skinny_linear.choose_config(x, weight, silu)
    if isinstance(config, linear_configs.WideConfig):
        config = None  # the other kernel's; this one takes it too
    expected = skinny_linear.skinny_linear_reference(x, weight, bias, silu)
    for _ in range(3):  # the split-K counters must come back to zero
        assert error(skinny_linear.skinny_linear(x, weight, bias, silu, config), expected) < 1e-2


WIDE = [s for s in linear_configs.FEW if s[0] < 100_000]


@pytest.mark.parametrize("rows", [33, 64, 100, 129, 256])
@pytest.mark.parametrize(("outputs", "inputs", "silu"), [*WIDE, (512, 256, True)])
def test_wide_linear(rows: int, outputs: int, inputs: int, silu: bool) -> None:
    x, weight = rand(rows, inputs), rand(outputs * (1 + silu), inputs) * 0.05
    config = skinny_linear.choose_config(x, weight, silu)
    if not isinstance(config, linear_configs.WideConfig):
        pytest.skip("the library is faster, or the chip is older than Hopper")
    bias = None if silu else rand(outputs)
    expected = skinny_linear.skinny_linear_reference(x, weight, bias, silu)
    for _ in range(2):  # the counters of a split are as they were
        assert error(wide_linear.wide_linear(x, weight, bias, silu, config=config), expected) < 1e-2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_product_added_to_the_residual(dtype: torch.dtype) -> None:
    rows = dispatch.MANY_ROWS
    x, weight = (torch.randn(n, 320, device="cuda").to(dtype) for n in (rows + 3, 192))
    residual = torch.randn(rows + 3, 192, device="cuda").to(dtype)
    wanted = residual.double() + x.double() @ weight.double().t()
    few = residual[: rows - 1].clone()
    assert not dispatch.add_linear(x[: rows - 1], weight, few) and torch.equal(few, residual[: rows - 1])
    with fixed_order(True):
        assert not dispatch.add_linear(x, weight, residual)
    assert dispatch.add_linear(x, weight, residual)
    assert error(residual, wanted) < (1e-5 if dtype == torch.float32 else 0.005)


def test_split_sums_in_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the table, through dispatch, captured and replayed: the workspace is ready for each replay."""
    x, weight = rand(256, 4096), rand(4096, 4096) * 0.05
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("tensor descriptors want Hopper")
    config = linear_configs.WideConfig(128, 64, 64, 8, swap=False, splits=2)
    monkeypatch.setitem(linear_configs.FEW, (4096, 4096, False), ((256, config),))
    assert skinny_linear.choose_config(x, weight) == config
    dispatch.linear(x, weight)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = x
        for _ in range(4):
            y = dispatch.linear(y, weight)
    for _ in range(3):
        x.copy_(rand(256, 4096))
        graph.replay()
        expected = x
        for _ in range(4):
            expected = skinny_linear.skinny_linear_reference(expected, weight, None)
        assert error(y, expected) < 3e-2


@pytest.mark.parametrize("dtype", [torch.float32, BF])
def test_sample(dtype: torch.dtype) -> None:
    vocab, n = 128256, 70
    floats = torch.zeros(n, 6, device="cuda")
    floats[:, 0] = torch.tensor([0.0, 0.8, 1.0, 0.7, 1.5]).repeat(14)
    floats[:, 1] = torch.tensor([1.0, 0.95, 1.0, 0.5, 1.0, 0.9, 0.99]).repeat(10)
    floats[:, 2] = torch.tensor([0.0, 0.05]).repeat(35)
    top_k = torch.tensor([0, 50, 0, 1, 1000, 3, 0], device="cuda").repeat(10)
    seeds = torch.randint(-(2**62), 2**62, (n,), device="cuda")
    rows, positions = torch.randperm(n, device="cuda"), torch.randint(0, 20000, (n,), device="cuda")
    logits = rand(n, vocab, dtype=torch.float32).mul(3).to(dtype)
    token_ids = torch.zeros(n, 20001, dtype=torch.int32, device="cuda")
    tokens, finite = sampling.sample(logits, rows, floats, top_k, seeds, positions, token_ids=token_ids)
    expected = sample_reference(logits, rows, floats, top_k, seeds, positions)
    # sums in float32 and float64 fall on either side of a token's edge now and then
    assert (tokens == expected).float().mean().item() > 0.9
    greedy = floats[rows, 0] == 0
    assert torch.equal(tokens[greedy], expected[greedy])
    assert finite.all()
    assert torch.equal(token_ids[rows, positions].long(), tokens)


def test_sample_follows_the_distribution() -> None:
    n, vocab = 20000, 1000
    logits = rand(vocab, dtype=torch.float32).mul(2).expand(n, vocab)
    floats = torch.tensor([[0.9, 0.9, 0.0, 1, 0, 0]], device="cuda")
    rows = torch.zeros(n, dtype=torch.int64, device="cuda")
    top_k, seeds = torch.tensor([200], device="cuda"), torch.tensor([1234], device="cuda")
    tokens, _ = sampling.sample(logits.contiguous(), rows, floats, top_k, seeds, torch.arange(n, device="cuda"))
    probs = (logits[0] / 0.9).softmax(-1)
    order = probs.argsort(descending=True)
    kept = order[:200]
    share = probs[kept] / probs[kept].sum()
    kept = kept[: int((share.cumsum(0) < 0.9).sum()) + 1]
    wanted = torch.zeros(vocab, device="cuda")
    wanted[kept] = probs[kept] / probs[kept].sum()
    got = torch.bincount(tokens, minlength=vocab) / n
    assert (got[wanted == 0] == 0).all()
    assert (got - wanted).abs().sum().item() / 2 < 0.03  # total variation; about sqrt(tokens / n) by chance


def test_bitmask_and_broken_logits() -> None:
    logits = rand(4, 70, dtype=torch.float32)
    logits[1, 5] = float("nan")
    logits[2, 66] = 50.0
    bits = torch.full((2, 3), -1, dtype=torch.int32, device="cuda")
    bits[1] = 0
    bits[1, 1] = 1 << 7  # token 39 alone
    floats = torch.zeros(4, 6, device="cuda")
    floats[:, 0] = torch.tensor([0.0, 1.0, 0.0, 1.0])
    floats[:, 1] = 1.0
    zeros = torch.zeros(4, dtype=torch.int64, device="cuda")
    rows, lines = torch.arange(4, device="cuda"), torch.tensor([0, 0, 1, 1], device="cuda")
    tokens, finite = sampling.sample(logits, rows, floats, zeros, zeros, zeros, masks=(lines, bits))
    assert finite.tolist() == [True, False, True, True]
    assert int(tokens[0]) == int(logits[0].argmax())
    assert tokens[2:].tolist() == [39, 39]


def test_prepare_decodes() -> None:
    token_ids = torch.randint(0, 1000, (6, 9001), dtype=torch.int32, device="cuda")
    table = torch.randint(0, 5000, (6, 563), dtype=torch.int32, device="cuda")
    packed = torch.tensor([[3, 0, 5, 1, -1, -1], [0, 15, 16, 8999, 7, 0]], dtype=torch.int32, device="cuda")

    def outputs() -> list[torch.Tensor]:
        made = [torch.full((6,), -7, dtype=torch.int64) for _ in range(3)]
        return [
            t.cuda()
            for t in (*made, torch.full((6,), -7, dtype=torch.int32), torch.full((6, 563), -7, dtype=torch.int32))
        ]

    got, expected = outputs(), outputs()
    batch.prepare_decodes(packed, token_ids, table, 16, *got)
    batch.prepare_decodes_reference(packed, token_ids, table, 16, *expected)
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)
