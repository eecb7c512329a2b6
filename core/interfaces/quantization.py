"""The contract of a quantization method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class LinearSpec:
    """One linear layer: y = x W^T + b. `output_sizes` are the fused parts of dimension 0 (q, k, v)."""

    name: str
    in_features: int
    output_sizes: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @property
    def out_features(self) -> int:
        """Outputs of all fused parts together."""
        return sum(self.output_sizes)


@dataclass(frozen=True, slots=True)
class ParameterSpec:
    """One tensor of a linear layer, as the checkpoint stores it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    output_dim: int | None = 0
    """Dimension along which fused parts are concatenated; None: shared by the parts."""


class LinearMethod(Protocol):
    """How one linear layer is stored and computed."""

    def parameters(self, spec: LinearSpec) -> dict[str, ParameterSpec]:
        """Tensor name (weight, qweight, scales ...) -> its stored form."""

    def finish(self, spec: LinearSpec, params: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Once, after loading: repack into the kernel's layout."""

    def apply(self, params: dict[str, torch.Tensor], x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """[num_tokens, in] -> [num_tokens, out]"""


class QuantizationMethod(Protocol):
    """Made from `quantization_config` of config.json; gives each linear layer its method."""

    name: str

    def __init__(self, config: Mapping[str, Any]) -> None:
        """config: the checkpoint's quantization_config."""

    @staticmethod
    def matches(config: Mapping[str, Any]) -> bool:
        """Is this quantization_config this method's?"""

    def linear(self, spec: LinearSpec) -> LinearMethod | None:
        """None: leave this layer unquantized."""
