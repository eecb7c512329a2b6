"""Linear layers, fused where the checkpoint has several (q, k, v; gate, up). The weights' form is a LinearMethod's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from core.interfaces.model import ModelContext
from core.interfaces.quantization import LinearMethod, LinearSpec, ParameterSpec
from core.kernels import dispatch

SMALL_BYTES = 1 << 20
"""Weights up to here are kept unpacked too, for steps of one row: oneDNN's call alone costs more than MKL's gemv of them;
from 4 rows on it is as fast or faster. One thread, microseconds, oneDNN and MKL: 256 outputs of 448 inputs 57 and 39. Larger
ones of a model that computes with two threads lose: 768 outputs of 768 inputs 125 and 147."""
WIDE = 1.5
"""From so many outputs an input on, the unpacked copy lies input by input: 896 outputs of 256 inputs 55 instead of 89 us
(oneDNN 92)."""
MAX_COPY_BYTES = 128 << 20
"""A tied head is packed too, beside the embedding, if the copy is no larger than this."""


def can_pack(weight: torch.Tensor) -> bool:
    """Is this matrix better in oneDNN's own blocked layout? Not where there are kernels that take it as it is."""
    if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.bfloat16) or dispatch.on_cpu(weight):
        return False
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return weight.dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()


class PlainLinear:
    """Weights as they are: y = x W^T + b.

    On a CPU they are packed once for oneDNN: measured against MKL's gemv and gemm (2 cores, AMD, float32), the
    matrices of a 125 M Llama take 13.4 instead of 25.5 ms for 1 row and 44 instead of 93 ms for 16.
    """

    def parameters(self, spec: LinearSpec) -> dict[str, ParameterSpec]:
        return {"weight": ParameterSpec((spec.out_features, spec.in_features), spec.dtype)}

    def finish(self, spec: LinearSpec, params: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if not can_pack(params["weight"]):
            return params
        packed = {"packed": torch.ops.mkldnn._reorder_linear_weight(params["weight"])}
        weight = params["weight"]
        if weight.nbytes > SMALL_BYTES:
            return packed
        outputs, inputs = weight.shape
        return {**packed, "small": weight.t().contiguous().t() if outputs >= WIDE * inputs else weight}

    def apply(self, params: dict[str, torch.Tensor], x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        packed = params.get("packed")
        if packed is None:
            return dispatch.linear(x, params["weight"], bias)
        if len(x) == 1 and (small := params.get("small")) is not None:
            return functional.linear(x, small, bias)
        return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


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
        self.tied = False
        """The weight is an embedding's as well: it stays as it is."""

    def finish(self) -> None:
        """After loading: hand the stored tensors to the method, which may repack them; what it drops is freed."""
        stored = {k: p.data for k, p in self.named_parameters(recurse=False) if k != "bias"}
        if self.tied and sum(t.nbytes for t in stored.values()) > MAX_COPY_BYTES:
            self.params = stored
            return
        self.params = self.method.finish(self.spec, stored)
        if not self.tied:
            kept = {id(t) for t in self.params.values()}
            for key, tensor in stored.items():
                if id(tensor) not in kept:
                    self.register_parameter(key, None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.method.apply(self.params, x, self.bias)

    def onto(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor | None:
        """The product, which is still to be added to the residual; None: it has been, in place."""
        plain = isinstance(self.method, PlainLinear) and self.bias is None and "weight" in self.params
        added = plain and dispatch.add_linear(x, self.params["weight"], residual)
        return None if added else self.forward(x)

    def silu_and_mul(self, x: torch.Tensor) -> torch.Tensor:
        """silu(gate) * up, of a fused gate and up projection."""
        if isinstance(self.method, PlainLinear) and self.bias is None and "weight" in self.params:
            return dispatch.linear_silu_and_mul(x, self.params["weight"])
        return dispatch.silu_and_mul(self.forward(x))
