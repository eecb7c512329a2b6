"""The kernels that Numba compiles, by one thread and by two, against their references in plain torch."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

pytest.importorskip("numba")
import numba
from torch.nn import functional

from core.kernels import references
from core.kernels.cpu import embedding, jit, linear, rms_norm, rope, sampling
from core.sampling.sampler import sample_reference


@pytest.fixture(params=[1, 2], autouse=True)
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


# what starts a process of its own sets its threads there
once = pytest.mark.parametrize("threads", [1], indirect=True)


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 4, 5, 7, 16, 33])
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 3), (6, 8), (101, 77), (64, 384), (768, 512)])
def test_linear(rows, outputs, inputs):
    x, weight, bias = torch.randn(rows, inputs), torch.randn(outputs, inputs) / inputs**0.5, torch.randn(outputs)
    close(linear.linear(x, weight, None), functional.linear(x, weight))
    close(linear.linear(x, weight, bias), functional.linear(x, weight, bias))
    scattered = torch.randn(rows, 2 * inputs)[:, ::2]
    close(linear.linear(scattered, weight, bias), functional.linear(scattered, weight, bias))
    both = torch.randn(2 * outputs, inputs) / inputs**0.5
    close(linear.linear_silu_and_mul(x, both), references.silu_and_mul_reference(functional.linear(x, both)))


def test_what_the_kernels_do_not_take_is_torch_s():
    """They see addresses alone: another layout, type or size would be read wrong, or behind its end."""
    x, weight, up = torch.randn(3, 8), torch.randn(8, 6).t(), torch.randn(8, 6)
    close(linear.linear(x, weight, None), functional.linear(x, weight))
    close(linear.linear(x[None], weight.contiguous(), None), functional.linear(x, weight)[None])
    close(linear.linear_silu_and_mul(x, up.t()), references.silu_and_mul_reference(functional.linear(x, up.t())))
    many = torch.randn(linear.MAX_ROWS + 1, 8)
    close(linear.linear(many, weight, None), functional.linear(many, weight))
    for wrong in (torch.randn(6, 9), torch.randn(6, 8, dtype=torch.float64)):
        with pytest.raises(RuntimeError):
            linear.linear(x, wrong, None)
    with pytest.raises(RuntimeError):
        rms_norm.rms_norm(x, torch.randn(9), 1e-6)
    residual, norm = torch.randn(8, 3).t(), torch.randn(8)
    expected = references.add_rms_norm_reference(x, residual, norm, 1e-6)
    for mine, right in zip(rms_norm.add_rms_norm(x, residual, norm, 1e-6), expected, strict=True):
        close(mine, right)


def test_silu_of_large_numbers():
    x, weight = torch.tensor([[1000.0]]), torch.tensor([[1.0], [-1.0], [1.0], [1.0]])
    assert linear.linear_silu_and_mul(x, weight).tolist() == [[1e6, 0.0]]


@pytest.mark.parametrize("kernel", [linear.linear, linear.linear_silu_and_mul], ids=lambda k: k.__name__)
def test_what_is_not_finite_stays_so(kernel):
    """The sampler ends a request whose logits are not finite: fast arithmetic may not hide them."""
    weight = torch.ones(8, 16)
    for bad in (float("nan"), float("inf")):
        x = torch.ones(3, 16)
        x[1, 5] = bad
        got = kernel(x, weight, None) if kernel is linear.linear else kernel(x, weight)
        assert got.isfinite().all(1).tolist() == [True, False, True]


@pytest.mark.parametrize("rows", [1, 5, 700])
def test_rms_norm(rows):
    x, residual, weight = torch.randn(rows, 96), torch.randn(rows, 96), torch.randn(96)
    close(rms_norm.rms_norm(x, weight, 1e-5), references.rms_norm_reference(x, weight, 1e-5))
    expected, total = references.add_rms_norm_reference(x, residual, weight, 1e-5)
    got, summed = rms_norm.add_rms_norm(x, residual, weight, 1e-5)
    close(got, expected)
    close(summed, total)
    assert summed is residual


def test_rms_norm_of_heads():
    x, weight = torch.randn(5, 3, 16), torch.randn(16)
    close(rms_norm.rms_norm(x, weight, 1e-6), references.rms_norm_reference(x, weight, 1e-6))


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(("tokens", "dim", "rotary"), [(5, 16, 16), (7, 24, 8), (400, 64, 64)])
def test_rope_and_cache(tokens, dim, rotary, norm):
    heads, kv_heads = 3, 1
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * dim)
    cos_sin, positions = torch.randn(100, rotary), torch.randint(0, 100, (tokens,))
    slots = torch.randperm(800)[:tokens]
    slots[2] = -1  # written nowhere
    weights = (torch.randn(dim), torch.randn(dim)) if norm else (None, None)
    cache = [torch.zeros(50, 16, kv_heads, dim) for _ in range(2)]
    expected_cache, expected = [c.clone() for c in cache], qkv.clone()
    references.rope_and_cache_reference(expected, cos_sin, positions, slots, *expected_cache, heads, *weights)
    rope.rope_and_cache(qkv, cos_sin, positions, slots, *cache, heads, *weights)
    close(qkv, expected)
    close(cache[0], expected_cache[0])
    close(cache[1], expected_cache[1])


def test_exp():
    @numba.njit(fastmath=jit.FASTMATH)
    def all_of(x, y):
        for i in range(x.shape[0]):
            y[i] = jit.exp(x[i])

    x = np.append(np.linspace(-87, 88, 100_001), [0.0, -0.0, np.nan, -np.inf, np.inf]).astype(np.float32)
    y = np.empty_like(x)
    all_of(x, y)
    exact = np.exp(x[:-5].astype(np.float64))
    assert (abs(y[:-5] - exact) < 1.3e-7 * exact).all()
    assert y[-5:-3].tolist() == [1, 1] and np.isnan(y[-3]) and y[-2] == y[0] and y[-1] == y[-6]


def test_a_program_makes_the_calls_that_were_noted():
    """With what lies at their addresses now; rows of one share and of several between each other."""
    x, weight, both = torch.randn(3, 256), torch.rand(256), torch.randn(2 * 301, 256) / 16
    head, residual, start = torch.randn(512, 301) / 16, torch.zeros(3, 256), torch.randn(3, 256)
    with jit.recording() as calls:
        normed, _ = rms_norm.add_rms_norm(x, residual, weight, 1e-5)
        inner = linear.linear_silu_and_mul(normed, both)
        logits = linear.linear(inner, head, None)
    assert [c.kernel.name for c in calls] == ["rms_norm", "linear_silu_and_mul", "linear"]
    program = jit.Program(calls)
    for _ in range(50):
        x.copy_(torch.randn(3, 256))
        residual.copy_(start)
        logits.fill_(float("nan"))
        program.run()
        expected = references.rms_norm_reference(x + start, weight, 1e-5)
        close(normed, expected)
        close(residual, x + start)
        close(logits, references.silu_and_mul_reference(expected @ both.t()) @ head.t())
    logits.fill_(7.0)
    program.run(1)
    assert (logits == 7).all()


@once
def test_a_pool_that_has_fewer_threads_than_it_was_asked_for():
    """What a team waits for may never come: it is then those who are there."""
    code = """
        import torch
        torch.set_num_threads(2)
        from core.kernels.cpu import jit, linear
        assert torch.get_num_threads() == 2
        x, weight = torch.randn(2, 512), torch.randn(600, 512)
        with jit.recording() as calls:
            found = [linear.linear(x, weight, None) for _ in range(5)]
        for y in found:
            y.zero_()
        jit.Program(calls).run()
        for y in found:
            assert (y - x @ weight.t()).abs().max() < 1e-3
    """
    environment = {**os.environ, "OMP_THREAD_LIMIT": "1", "NUMBA_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=120, env=environment)


@once
def test_where_nothing_can_be_kept(tmp_path):
    """A read-only install and no home: the kernels are compiled in memory. And numba that cannot be imported: no kernels."""
    code = """
        import sys
        sys.dont_write_bytecode = True
        import numba
        from numba.core import caching
        caching.CacheImpl._locator_classes = []
        import torch
        from core.kernels.cpu import rms_norm
        x, weight = torch.ones(2, 4), torch.ones(4)
        assert abs(rms_norm.rms_norm(x, weight, 0.0) - 1).max() < 1e-6
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=120)
    (tmp_path / "numba.py").write_text("raise ImportError('Numba needs NumPy 1.0 or less')")
    code = """
        import logging, torch
        logging.basicConfig()
        from core.kernels import dispatch
        assert not dispatch.on_cpu(torch.ones(2))
        assert abs(dispatch.rms_norm(torch.ones(2, 4), torch.ones(4), 0.0) - 1).max() < 1e-6
    """
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "Numba needs NumPy 1.0 or less" in done.stderr


def test_embedding():
    ids, table = torch.tensor([5, 0, 9, 5]), torch.randn(10, 7)
    close(embedding.embedding(ids, table), table[ids])
    close(embedding.embedding(ids.repeat(2)[::2], table), table[ids.repeat(2)[::2]])
    assert embedding.embedding(torch.tensor([3, 10, -1]), table).isnan().any(1).tolist() == [False, True, True]


@pytest.mark.parametrize("vocab_size", [2, 63, 300, 70_001])
def test_greedy(vocab_size):
    """As torch.argmax: the first of equals; a row whose highest logit is no finite number is told."""
    logits = torch.randn(8, vocab_size)
    logits[1, vocab_size // 2] = float("nan")
    logits[2, vocab_size // 3] = float("inf")
    logits[3] = float("-inf")
    logits[4, : vocab_size // 2] = float("-inf")
    logits[5, vocab_size // 4 :] = 99.0
    logits[6] = 0.0
    logits[7, 0], logits[7, -1] = float("nan"), 99.0
    rows, places = torch.tensor([[3, 0, 1, 8, 2, 5, 7, 6], list(range(8))], dtype=torch.int32)
    token_ids, found = torch.zeros(9, 13, dtype=torch.int32), torch.full((2, 10), -7, dtype=torch.int32)
    sampling.greedy(logits, rows, places, token_ids, found, later=5)
    tokens, finite = found[:, :8]
    assert (found[:, 8:] == -7).all()
    assert finite.tolist() == logits.amax(-1).isfinite().tolist() == [True, *[False] * 3, *[True] * 3, False]
    for i in (0, 4, 5, 6):
        assert tokens[i] == logits[i].argmax()
    assert ((tokens >= 0) & (tokens < vocab_size)).all()
    assert (
        token_ids[rows, places + 5].tolist() == tokens.tolist() and token_ids.count_nonzero() == tokens.count_nonzero()
    )
    strided = torch.randn(2, 2 * vocab_size)[:, ::2]
    sampling.greedy(strided, rows, places, token_ids, found)
    assert found[0, :2].tolist() == strided.argmax(-1).tolist()


SEVERAL = [
    dict(temperature=0.0),
    dict(temperature=1.0),
    dict(temperature=0.3, top_p=0.9),
    dict(temperature=1.5, top_k=7),
    dict(temperature=0.8, top_k=40, top_p=0.5, min_p=0.02),
    dict(temperature=2.0, min_p=0.3),
    dict(temperature=1.0, top_k=1),
    dict(temperature=0.7, top_p=1e-6),
]


def wishes(params: list[dict], num_rows: int, at: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    floats, top_k = torch.full((num_rows, 6), float("nan")), torch.full((num_rows,), -99)
    for row, p in zip(at, params, strict=True):
        floats[row, :3] = torch.tensor([p["temperature"], p.get("top_p", 1.0), p.get("min_p", 0.0)])
        top_k[row] = p.get("top_k", 0)
    return floats, top_k, torch.randint(-(2**62), 2**62, (num_rows,))


@pytest.mark.parametrize("vocab_size", [40, 333, 20_001])
def test_sample_is_what_the_sampler_draws(vocab_size):
    """Over 60 places each: the same uniform numbers, so the same tokens, whatever the row asks."""
    rows = [5, 0, 3, 8, 1, 7, 2, 6]
    floats, top_k, seeds = wishes(SEVERAL, 9, rows)
    at = torch.tensor(rows, dtype=torch.int32)
    for place in range(60):
        logits = (torch.randn(8, vocab_size) * 3).round(decimals=2)  # with equal ones
        places = torch.full((8,), place, dtype=torch.int32)
        expected = sample_reference(logits.clone(), at.long(), floats, top_k, seeds, places.long())
        token_ids, found = torch.full((9, 60), -1, dtype=torch.int32), torch.zeros(2, 8, dtype=torch.int32)
        sampling.sample(logits, at, places, token_ids, found, floats, top_k, seeds)
        assert found[0].tolist() == expected.tolist() and found[1].all()
        assert token_ids[at.long(), place].tolist() == expected.tolist() and (token_ids >= 0).sum() == 8


def test_sample_under_masks():
    """Rows with a mask choose what it allows, as if the rest had no logit; others are free; words cut the vocabulary off."""
    vocab_size = 75
    floats, top_k, seeds = wishes(SEVERAL, 8, list(range(8)))
    allowed = torch.rand(5, vocab_size) < 0.3
    allowed[0] = False
    allowed[0, [31, 32, 74]] = True  # both ends of a word, and the last token
    allowed[1], allowed[2] = True, False
    allowed[2, 63] = True
    packed = np.packbits(np.pad(allowed.numpy(), ((0, 0), (0, 96 - vocab_size))), axis=1, bitorder="little")
    lines = torch.tensor([2, -1, 0, 1, 3, -1, 4, 0], dtype=torch.int32)
    at = torch.arange(8, dtype=torch.int32)
    for place in range(40):
        logits = torch.randn(8, vocab_size) * 3
        masked = logits.clone()
        for i, line in enumerate(lines.tolist()):
            if line >= 0:
                masked[i, ~allowed[line]] = float("-inf")
        places = torch.full((8,), place, dtype=torch.int32)
        expected = sample_reference(masked, at.long(), floats, top_k, seeds, places.long())
        token_ids, found = torch.zeros(8, 40, dtype=torch.int32), torch.zeros(2, 8, dtype=torch.int32)
        bits = torch.from_numpy(packed.view(np.int32).copy())
        sampling.sample(logits, at, places, token_ids, found, floats, top_k, seeds, (lines, bits))
        assert found[0].tolist() == expected.tolist()


def test_sample_tells_what_is_not_finite_and_goes_on_with_the_rest():
    logits = torch.randn(5, 90)
    logits[0, 17] = float("nan")
    logits[1, 17] = float("inf")
    logits[2] = float("-inf")
    logits[3, :89] = float("-inf")
    logits[4, 5] = 1e30
    floats, top_k, seeds = wishes([dict(temperature=1.0)] * 3 + [dict(temperature=1e-38)] * 2, 5, list(range(5)))
    at, found = torch.arange(5, dtype=torch.int32), torch.zeros(2, 5, dtype=torch.int32)
    sampling.sample(logits, at, at, torch.zeros(5, 5, dtype=torch.int32), found, floats, top_k, seeds)
    assert found[1].tolist() == [0, 0, 0, 1, 1] and found[0, 3:].tolist() == [89, 5]
    assert ((found[0] >= 0) & (found[0] < 90)).all()
    assert sampling.sample(logits[:0], at[:0], at[:0], at[None], found[:, :0], floats, top_k, seeds) is None


def test_draws_follow_the_probabilities():
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0, float("-inf")]]).repeat(4000, 1)
    floats, top_k, _ = wishes([dict(temperature=1.0)], 1, [0])
    rows, places = torch.zeros(4000, dtype=torch.int32), torch.arange(4000, dtype=torch.int32)
    found = torch.zeros(2, 4000, dtype=torch.int32)
    seeds = torch.tensor([11])
    sampling.sample(logits.clone(), rows, places, torch.zeros(1, 4000, dtype=torch.int32), found, floats, top_k, seeds)
    counts = torch.bincount(found[0], minlength=5)
    expected = logits[0].softmax(-1) * 4000
    assert counts[4] == 0 and (counts - expected).abs().max() < 4 * expected.max() ** 0.5
