"""Filters against sorting, random numbers against what they promise."""

from __future__ import annotations

import pytest
import torch

from core.sampling.filters import keep, top_k_threshold, top_p_threshold
from core.sampling.penalties import apply_penalties
from core.sampling.random import uniform
from core.sampling.sampler import inverse_cdf


@pytest.fixture
def probs() -> torch.Tensor:
    torch.manual_seed(1)
    return (torch.randn(64, 500) * 3).softmax(-1)


def test_top_k_keeps_the_k_largest(probs):
    top_k = torch.randint(1, 60, (64,))
    kept = keep(probs, top_k_threshold(probs, top_k))
    for row, k, mine in zip(probs, top_k.tolist(), kept, strict=True):
        assert set(mine.nonzero().flatten().tolist()) == set(row.topk(k).indices.tolist())
    assert torch.equal(keep(probs, top_k_threshold(probs, torch.zeros(64, dtype=torch.int64))), probs)


def test_top_p_keeps_the_smallest_set_that_suffices(probs):
    top_p = torch.rand(64, dtype=torch.float64) * 0.98 + 0.01
    kept = keep(probs, top_p_threshold(probs, top_p))
    for row, p, mine in zip(probs, top_p.tolist(), kept, strict=True):
        ordered = row.double().sort(descending=True).values
        count = int((ordered.cumsum(0) < p * ordered.sum()).sum()) + 1
        assert int((mine > 0).sum()) == count
        assert mine.double().sum() >= p * row.double().sum() - 1e-9


def test_equal_probabilities_stay_together():
    flat = torch.full((1, 8), 0.125)
    assert (keep(flat, top_p_threshold(flat, torch.tensor([0.3]))) > 0).all()
    assert (keep(flat, top_k_threshold(flat, torch.tensor([3]))) > 0).all()


def test_uniform_is_uniform_and_depends_on_seed_and_position_alone():
    seeds = torch.arange(-5000, 5000)
    values = uniform(seeds, torch.zeros_like(seeds))
    assert values.min() >= 0 and values.max() < 1
    histogram = torch.histc(values.float(), 20, 0, 1)
    assert ((histogram - 500).abs() < 110).all()  # five standard deviations
    other = uniform(seeds, torch.ones_like(seeds))
    assert abs(torch.corrcoef(torch.stack([values, other]))[0, 1]) < 0.05
    assert torch.equal(uniform(seeds[7:8], torch.tensor([3])), uniform(seeds, torch.full_like(seeds, 3))[7:8])


def test_draws_follow_the_distribution():
    probs = torch.tensor([[0.5, 0.0, 0.3, 0.2, 0.0]]).repeat(20_000, 1)
    seeds = torch.arange(20_000)
    drawn = inverse_cdf(probs, uniform(seeds, torch.zeros_like(seeds)))
    share = torch.bincount(drawn, minlength=5) / 20_000
    assert torch.allclose(share, torch.tensor([0.5, 0.0, 0.3, 0.2, 0.0]), atol=0.015)
    assert inverse_cdf(probs[:1], torch.tensor([1 - 1e-17], dtype=torch.float64)).item() == 3


def test_penalties_follow_their_definitions():
    logits = torch.tensor([[2.0, -2.0, 1.0, 0.5]])
    # prompt 0, output 1 1 2
    tokens = torch.tensor([[0, 1, 1, 2, 3]])
    one = torch.ones(1)
    out = apply_penalties(logits, tokens, torch.tensor([4]), torch.tensor([1]), one * 2, one * 0.5, one * 0.25)
    assert torch.allclose(out, torch.tensor([[1.0, -4.0 - 0.5 - 0.5, 0.5 - 0.5 - 0.25, 0.5]]))
