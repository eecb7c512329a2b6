"""The contract of a model architecture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from core.batch import ForwardBatch
from core.interfaces.attention import AttentionBackend, AttentionSpec
from core.interfaces.quantization import QuantizationMethod

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class WeightMap:
    """How checkpoint names become parameters, as data.

    `renames`: (old prefix, new prefix), the first that fits is applied. `fused`: parameter suffix ->
    checkpoint suffixes, concatenated on dimension 0 in that order. `ignored`: suffixes that are not loaded.
    """

    renames: Sequence[tuple[str, str]] = ()
    fused: Mapping[str, Sequence[str]] = field(default_factory=dict)
    ignored: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class ModelContext:
    """What a model is built with."""

    config: Mapping[str, Any]
    """config.json (with hf_overrides applied)"""
    dtype: torch.dtype
    device: torch.device
    attention: AttentionBackend
    quantization: QuantizationMethod | None
    max_model_len: int


class Model(Protocol):
    """`register_models` maps an architecture name to a class with this shape, a torch.nn.Module."""

    cache_spec: Sequence[AttentionSpec]
    weight_map: WeightMap
    generates: bool = True
    """May be left out. False: the checkpoint has no head; it embeds, and `logits` means nothing."""

    def __init__(self, context: ModelContext) -> None:
        """Make the parameters (on context.device); weights are loaded into them afterwards."""

    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        """-> [num_tokens, hidden], or [S, hidden] of the tokens in batch.wanted, if that is set.

        Capturable: static shapes, no host synchronisation.
        """

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[num_rows, hidden] -> [num_rows, vocab]"""


ModelFactory = Callable[[ModelContext], Model]
