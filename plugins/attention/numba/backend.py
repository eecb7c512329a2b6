"""The attention backend "numba": decodes by a kernel of its own, prompts by torch's attention, as the backend "torch"."""

from __future__ import annotations

from typing import Any

import torch

from core.batch import ForwardBatch
from core.interfaces.attention import AttentionCapabilities, AttentionSpec
from core.kernels.cpu.rope import rope_and_cache
from plugins.attention.numba.decode import decode_attention
from plugins.attention.torch.backend import TorchBackend, TorchPlan
from plugins.attention.torch.reference import paged_attention_reference


class NumbaBackend(TorchBackend):
    name = "numba"
    capabilities = AttentionCapabilities(
        devices=frozenset({"cpu"}),
        dtypes=frozenset({"float32"}),
        casts_cache=False,
        soft_cap=True,
        alibi=True,
        graph_capture=True,
        fused_rope=True,
    )

    def plan(self, batch: ForwardBatch) -> None:
        # nothing reads behind a request's last token here: no slots are stale
        batch.attention.state = TorchPlan(batch.attention.slot_mapping, None, [], self.prefill_chunks(batch))

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
        slots = batch.attention.slot_mapping
        keys.view(-1, *keys.shape[2:]).index_copy_(0, slots, key)
        values.view(-1, *values.shape[2:]).index_copy_(0, slots, value)
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
        slots = batch.attention.slot_mapping
        qkv = qkv.contiguous()
        rope_and_cache(qkv, cos_sin, batch.positions, slots, keys, values, spec.num_heads, q_weight, k_weight, eps)
        heads = qkv.view(qkv.shape[0], spec.num_heads + 2 * spec.num_kv_heads, spec.head_dim)
        if batch.attention.num_decodes == qkv.shape[0] and spec.soft_cap is None and spec.alibi_slopes is None:
            return decode_attention(spec, heads, keys, values, batch.attention)
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
        if spec.soft_cap is not None or spec.alibi_slopes is not None:
            return paged_attention_reference(spec, query, keys, values, batch)
        decodes = batch.attention.num_decodes
        out = query.new_empty(query.shape)
        if decodes:
            out[:decodes] = decode_attention(spec, query[:decodes], keys, values, batch.attention)
        self.attend_prefills(spec, query, key, value, keys, values, batch, out)
        return out
