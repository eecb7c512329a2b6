"""The attention backend "triton": FlashAttention for new prompts, PagedAttention for decodes, in one step.

Decodes come first in a batch and go to the decode kernel, which can be captured in a CUDA graph; the rest go to the
prefill kernel, in two launches at most: requests without earlier context read keys and values from the activations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from core.batch import ForwardBatch
from core.interfaces.attention import AttentionCapabilities, AttentionSpec
from core.kernels.rope import rope_and_cache, write_cache
from plugins.attention.triton.decode import decode_attention
from plugins.attention.triton.prefill import PrefillConfig, choose_config, prefill_attention


@dataclass(slots=True)
class TritonPlan:
    """A step's prefill work: host-made lists of (request, tile), the heaviest first; made once per tile height."""

    query_lens: np.ndarray
    """int64 [num_prefills]"""
    seq_lens: np.ndarray
    tiles: dict[int, tuple[torch.Tensor, torch.Tensor]]
    """rows in a tile -> tiles of requests without, and with, earlier context"""


class TritonBackend:
    name = "triton"
    capabilities = AttentionCapabilities(
        devices=frozenset({"cuda"}),
        dtypes=frozenset({"bfloat16", "float16", "float32"}),
        soft_cap=True,
        alibi=True,
        graph_capture=True,
        fused_rope=True,
    )

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._slopes: dict[tuple[float, ...], torch.Tensor] = {}

    def allocate(
        self, spec: AttentionSpec, num_blocks: int, block_size: int, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (num_blocks, block_size, spec.num_kv_heads, spec.head_dim)
        # zeros: what is masked must be finite
        return torch.zeros(shape, dtype=dtype, device=self.device), torch.zeros(shape, dtype=dtype, device=self.device)

    def plan(self, batch: ForwardBatch) -> None:
        meta = batch.attention
        first = meta.num_decodes
        if first >= meta.num_requests:
            meta.state = None
            return
        meta.state = TritonPlan(
            meta.query_lens_host[first : meta.num_requests].astype(np.int64),
            meta.seq_lens_host[first : meta.num_requests].astype(np.int64),
            {},
        )

    def forward(
        self,
        spec: AttentionSpec,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cache: Any,
        batch: ForwardBatch,
    ) -> torch.Tensor:
        keys, values = cache
        write_cache(key, value, batch.attention.slot_mapping, keys, values)
        return self._attend(spec, query, key, value, keys, values, batch)

    def forward_rope(
        self,
        spec: AttentionSpec,
        qkv: torch.Tensor,
        cos_sin: torch.Tensor,
        cache: Any,
        batch: ForwardBatch,
        q_weight: torch.Tensor | None = None,
        k_weight: torch.Tensor | None = None,
        eps: float = 1e-6,
    ) -> torch.Tensor:
        """As `forward`, from the projection: norm the heads (if weights are given), rotate, write, attend.

        qkv: [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim], changed in place;
        cos_sin: float32 [max_positions, rotary_dim] -> [num_tokens, num_heads, head_dim]
        """
        keys, values = cache
        meta = batch.attention
        rope_and_cache(
            qkv, cos_sin, batch.positions, meta.slot_mapping, keys, values, spec.num_heads, q_weight, k_weight, eps
        )
        heads = qkv.view(qkv.shape[0], spec.num_heads + 2 * spec.num_kv_heads, spec.head_dim)
        query, key, value = heads.split([spec.num_heads, spec.num_kv_heads, spec.num_kv_heads], 1)
        return self._attend(spec, query, key, value, keys, values, batch)

    def _attend(
        self,
        spec: AttentionSpec,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        batch: ForwardBatch,
    ) -> torch.Tensor:
        meta = batch.attention
        query = together(query)
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        slopes = self._alibi(spec)
        n = meta.num_decodes
        if n:
            decode_attention(
                spec, query[:n], keys, values, meta.block_table, meta.seq_lens, out[:n], meta.max_seq_len, slopes
            )
        plan: TritonPlan | None = meta.state
        if plan is None:
            return out
        config = choose_config(spec.head_dim, query.element_size(), query.is_cuda)
        fresh, continued = self._tiles(plan, config, n)
        fixed = (meta.block_table, meta.query_start_loc, meta.seq_lens)
        prefill_attention(
            spec, query, together(key), together(value), *fixed, fresh, out, paged=False, slopes=slopes, config=config
        )
        prefill_attention(spec, query, keys, values, *fixed, continued, out, paged=True, slopes=slopes, config=config)
        return out

    def _tiles(self, plan: TritonPlan, config: PrefillConfig, first: int) -> tuple[torch.Tensor, torch.Tensor]:
        if config.rows not in plan.tiles:
            counts = -(-plan.query_lens // config.rows)
            requests = np.repeat(np.arange(len(counts)), counts)
            tile = np.arange(len(requests)) - np.repeat(np.cumsum(counts) - counts, counts)
            context = plan.seq_lens - plan.query_lens
            # by the keys that a tile has to go through, most first: the tail is then short
            order = np.argsort(-(context[requests] + tile * config.rows), kind="stable")
            has_context = context[requests[order]] > 0
            pairs = np.stack([requests + first, tile], 1)[order].astype(np.int32)
            both = np.concatenate([pairs[~has_context], pairs[has_context]])
            sent = torch.from_numpy(np.ascontiguousarray(both))
            if self.device.type == "cuda":
                sent = sent.pin_memory().to(self.device, non_blocking=True)
            num_fresh = int((~has_context).sum())
            plan.tiles[config.rows] = (sent[:num_fresh], sent[num_fresh:])
        return plan.tiles[config.rows]

    def _alibi(self, spec: AttentionSpec) -> torch.Tensor | None:
        if spec.alibi_slopes is None:
            return None
        if spec.alibi_slopes not in self._slopes:
            slopes = torch.tensor(spec.alibi_slopes, dtype=torch.float32) * math.log2(math.e)
            self._slopes[spec.alibi_slopes] = slopes.to(self.device)
        return self._slopes[spec.alibi_slopes]


def together(x: torch.Tensor) -> torch.Tensor:
    """The heads of a token side by side, as the kernels want them; tokens may lie apart."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()
