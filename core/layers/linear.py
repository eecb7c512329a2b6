"""Linear layers, fused where the checkpoint has several (q, k, v; gate, up). The weights' form is a LinearMethod's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from core.interfaces.model import ModelContext
from core.interfaces.quantization import LinearMethod, LinearSpec, ParameterSpec


class PlainLinear:
    """Weights as they are: y = x W^T + b."""

    def parameters(self, spec: LinearSpec) -> dict[str, ParameterSpec]:
        return {"weight": ParameterSpec((spec.out_features, spec.in_features), spec.dtype)}

    def finish(self, spec: LinearSpec, params: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return params

    def apply(self, params: dict[str, torch.Tensor], x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return functional.linear(x, params["weight"], bias)


class Linear(nn.Module):
    """[num_tokens, in_features] -> [num_tokens, sum(output_sizes)]"""

    def __init__(
        self, context: ModelContext, name: str, in_features: int, output_sizes: Sequence[int], bias: bool = False
    ) -> None:
        super().__init__()
        self.spec = LinearSpec(name, in_features, tuple(output_sizes), context.dtype, context.device)
        method = context.quantization.linear(self.spec) if context.quantization else None
        self.method: LinearMethod = method or PlainLinear()
        for key, stored in self.method.parameters(self.spec).items():
            tensor = torch.empty(stored.shape, dtype=stored.dtype, device=context.device)
            self.register_parameter(key, nn.Parameter(tensor, requires_grad=False))
        self.bias = (
            nn.Parameter(
                torch.empty(self.spec.out_features, dtype=context.dtype, device=context.device), requires_grad=False
            )
            if bias
            else None
        )
        self.params: dict[str, torch.Tensor] = {}

    def finish(self) -> None:
        """After loading: hand the stored tensors to the method, which may repack them."""
        stored = {k: p.data for k, p in self.named_parameters(recurse=False) if k != "bias"}
        self.params = self.method.finish(self.spec, stored)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.method.apply(self.params, x, self.bias)
