"""The contract of an attention backend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from core.batch import ForwardBatch

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """One attention layer's cache and mask."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int | None = None
    """A token sees itself and the `window - 1` before it; None: all."""
    soft_cap: float | None = None
    alibi_slopes: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class AttentionCapabilities:
    """What a backend can do; checked when the engine is built."""

    devices: frozenset[str]
    dtypes: frozenset[str]
    """torch names: float32, bfloat16 ..."""
    head_dims: frozenset[int] | None = None
    """None: any."""
    window: bool = True
    soft_cap: bool = False
    alibi: bool = False
    graph_capture: bool = False
    """forward() of decodes may be captured in a CUDA graph, or its kernels' calls recorded on a CPU, and replayed with other
    lengths."""
    mixed_capture: bool = False
    """Steps with prompts too may be captured: graph_words, graph_state and graph_fill exist."""
    fused_rope: bool = False
    """forward_rope() exists: rotation and cache write in one kernel."""
    fixed_order: bool = False
    """Within core.kernels.launch.fixed_order(True) a token's result depends on its own request alone, bit by bit."""
    cache_dtypes: frozenset[str] | None = None
    """What keys and values may be stored as, of the names of `kv_cache_dtype`; None: the types in `dtypes`."""
    casts_cache: bool = True
    """Keys and values may be stored in another type of 16 or 32 bits than the model's."""
    block_sizes: frozenset[int] | None = None
    """None: any."""


class AttentionBackend(Protocol):
    """Made once per engine: `Backend(device)`. Owns the layout of the cache.

    With capabilities.mixed_capture it also has what a captured step with prompts in it needs: `graph_words(num_tokens)`,
    how many int32 of the step's one copy to the device are the backend's; `graph_state(words)`, what
    batch.attention.state is while such a step is captured, `words` being that part on the device;
    `graph_fill(words, query_lens, seq_lens, first_request)`, which writes that part on the host for the prompts of a
    plan, or says False if it has no room for them or does better uncaptured. In such a step every request is a decode to
    num_decodes, and decode_lens tells which of them really are.
    """

    name: str
    capabilities: AttentionCapabilities

    def __init__(self, device: torch.device) -> None: ...

    def allocate(
        self, spec: AttentionSpec, num_blocks: int, block_size: int, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of one layer; dimension 0 of each is the block."""

    def plan(self, batch: ForwardBatch) -> None:
        """Once a step, before the first layer; may set batch.attention.state."""

    def forward(
        self,
        spec: AttentionSpec,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cache: Any,
        batch: ForwardBatch,
    ) -> torch.Tensor:
        """Write key and value into the cache, attend.

        query: [num_tokens, num_heads, head_dim]; key, value: [num_tokens, num_kv_heads, head_dim]
        -> [num_tokens, num_heads, head_dim].
        """
