"""Which steps are worth a CUDA graph, by arithmetic."""

from __future__ import annotations

import pytest
import torch

from core.config import DeviceConfig
from core.errors import ConfigError
from core.runner.graph_sizes import MIXED_SIZES, largest_step, mixed_sizes, tokens_worth_capturing

FLOPS = 792e12  # 132 multiprocessors


def model(layers: int, layer_parameters: float, vocab: int = 128256, dtype: torch.dtype = torch.bfloat16):
    """Weights of that size that lie nowhere, with an embedding that does not count."""
    made = torch.nn.Module()
    rows = int(layer_parameters) // 4096
    for i in range(layers):
        weight = torch.empty(rows, 4096, dtype=dtype, device="meta")
        made.register_parameter(f"layer{i}", torch.nn.Parameter(weight, requires_grad=False))
    made.register_parameter("embedding", torch.nn.Parameter(torch.empty(vocab, 1024, device="meta")))
    return made


@pytest.mark.parametrize(
    ("layers", "parameters", "least", "most"),
    [(32, 218e6, 800, 1000), (16, 60.8e6, 3000, 3500), (28, 15.7e6, 12000, 13500)],
    ids=["8B", "1B", "0.6B"],
)
def test_a_smaller_model_has_larger_graphs(layers, parameters, least, most):
    assert least <= tokens_worth_capturing(model(layers, parameters), layers, 128256, FLOPS) <= most


def test_weights_packed_in_integers_and_slow_devices_have_the_sizes_that_every_model_has():
    packed = model(28, 2e6, dtype=torch.int32)
    assert tokens_worth_capturing(packed, 28, 128256, FLOPS) == MIXED_SIZES[-1]
    assert tokens_worth_capturing(model(32, 218e6), 32, 128256, 0.0) == MIXED_SIZES[-1]


def test_the_largest_step_is_the_whole_budget_if_that_is_near():
    assert largest_step(12000, 16384) == 16384
    assert largest_step(3200, 16384) == 3072
    assert largest_step(900, 16384) == 768
    assert largest_step(512, 16384) == 512
    assert largest_step(900, 600) == 600
    assert largest_step(512, 100) == 100


def test_sizes_grow_by_half_or_a_third():
    assert mixed_sizes(300) == [16, 32, 64, 128, 192, 256]
    assert mixed_sizes(512) == list(MIXED_SIZES)
    assert mixed_sizes(3000) == [*MIXED_SIZES, 768, 1024, 1536, 2048, 3000]
    assert mixed_sizes(16384)[-3:] == [8192, 12288, 16384]


def test_a_limit_of_nothing_names_the_way_to_have_no_graphs():
    with pytest.raises(ConfigError, match="enforce_eager"):
        DeviceConfig(max_graph_batch=0)
