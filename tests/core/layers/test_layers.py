"""The layers' faster forms against the textbook's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from core.interfaces.model import ModelContext
from core.layers.linear import Linear
from core.layers.norm import RMSNorm
from core.layers.rotary import Rotary, rotate

CPU = torch.device("cpu")


def context() -> ModelContext:
    unused: Any = None
    return ModelContext({}, torch.float32, CPU, unused, None, 64)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_a_packed_linear_layer_is_the_linear_layer(bias, tied):
    torch.manual_seed(0)
    with torch.inference_mode():
        layer = Linear(context(), "x", 48, [40, 9], bias)
        for parameter in layer.parameters():
            parameter.data.normal_()
        weight, offset = layer.weight.data.clone(), layer.bias.data.clone() if layer.bias is not None else None
        layer.tied = tied
        layer.finish()
        if tied:
            assert torch.equal(layer.weight.data, weight)  # the embedding reads it
        for rows in (1, 2, 16, 63):
            x = torch.randn(rows, 48)
            torch.testing.assert_close(layer(x), functional.linear(x, weight, offset), atol=1e-4, rtol=1e-4)


def test_rms_norm_at_any_scale():
    torch.manual_seed(0)
    norm = RMSNorm(96, 1e-5, torch.float32, CPU)
    norm.weight.data.normal_()
    for scale in (0.0, 1e-4, 1.0, 1e4):
        x = torch.randn(5, 96) * scale
        torch.testing.assert_close(norm(x), functional.rms_norm(x, (96,), norm.weight, 1e-5), atol=1e-5, rtol=1e-4)


def test_rotation_turns_pairs_by_their_angle():
    torch.manual_seed(0)
    rotary = Rotary({"rope_theta": 100.0}, 8, 64, CPU)
    x = torch.randn(3, 2, 8)
    positions = torch.tensor([0, 5, 63])
    turned = rotate(x, *rotary.at(positions, torch.float32))
    angle = positions[:, None].double() * 100.0 ** (-torch.arange(0, 8, 2).double() / 8)
    turn = torch.polar(torch.ones_like(angle), angle)[:, None]
    expected = torch.complex(x[..., :4].double(), x[..., 4:].double()) * turn
    torch.testing.assert_close(turned, torch.cat([expected.real, expected.imag], -1).float(), atol=1e-5, rtol=1e-5)
