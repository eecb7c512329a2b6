"""Llama 1, 2 and 3.x (and Yi, which is the same): RMS norm, rotary positions, grouped heads, SwiGLU.

Source: arXiv:2302.13971, arXiv:2407.21783.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from core.batch import ForwardBatch
from core.errors import ModelError
from core.interfaces.attention import AttentionSpec
from core.interfaces.model import ModelContext, WeightMap
from core.kernels import dispatch
from core.layers.embedding import Embedding
from core.layers.linear import Linear
from core.layers.norm import RMSNorm
from core.layers.rotary import Rotary, rotate

Rotation = tuple[torch.Tensor, ...]
"""cos and sin at the step's positions; or, for a backend that rotates itself, the whole table."""


class LlamaAttention(nn.Module):
    qkv_bias = False
    qk_norm = False

    def __init__(self, context: ModelContext, index: int, window: int | None) -> None:
        super().__init__()
        config = context.config
        heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
        kv_heads = int(config.get("num_key_value_heads") or heads)
        dim = int(config.get("head_dim") or hidden // heads)
        self.index, self.backend = index, context.attention
        self.spec = AttentionSpec(heads, kv_heads, dim, dim**-0.5, window)
        bias = bool(config.get("attention_bias", False))
        name = f"model.layers.{index}.self_attn"
        self.qkv_proj = Linear(
            context, f"{name}.qkv_proj", hidden, [heads * dim, kv_heads * dim, kv_heads * dim], self.qkv_bias or bias
        )
        self.o_proj = Linear(context, f"{name}.o_proj", heads * dim, [hidden], bias)
        if self.qk_norm:
            eps = float(config["rms_norm_eps"])
            self.q_norm = RMSNorm(dim, eps, context.dtype, context.device)
            self.k_norm = RMSNorm(dim, eps, context.dtype, context.device)

    def forward(
        self,
        hidden: torch.Tensor,
        residual: torch.Tensor,
        rotation: Rotation,
        batch: ForwardBatch,
        wanted: torch.Tensor | None,
    ) -> torch.Tensor | None:
        """wanted: only these tokens' outputs; the residual has only theirs. None: the output is in the residual."""
        out = self.attend(hidden, rotation, batch).flatten(1)
        return self.o_proj.onto(out if wanted is None else out.index_select(0, wanted), residual)

    def attend(self, hidden: torch.Tensor, rotation: Rotation, batch: ForwardBatch) -> torch.Tensor:
        """-> [num_tokens, num_heads, head_dim]"""
        spec = self.spec
        heads = spec.num_heads + spec.num_kv_heads
        projected = self.qkv_proj(hidden)
        if len(rotation) == 1:
            # the backend rotates and writes the cache in one kernel
            norms = (self.q_norm.weight, self.k_norm.weight, self.q_norm.eps) if self.qk_norm else ()
            fused: Any = self.backend
            return fused.forward_rope(spec, projected, rotation[0], batch.caches[self.index], batch, *norms)
        # [num_tokens, query heads + key heads + value heads, head_dim]
        qkv = projected.view(hidden.shape[0], heads + spec.num_kv_heads, spec.head_dim)
        qk, value = qkv[:, :heads], qkv[:, heads:]
        if self.qk_norm:
            qk = torch.cat([self.q_norm(qk[:, : spec.num_heads]), self.k_norm(qk[:, spec.num_heads :])], 1)
        qk = rotate(qk, *rotation)
        query, key = qk[:, : spec.num_heads], qk[:, spec.num_heads :]
        return self.backend.forward(spec, query, key, value, batch.caches[self.index], batch)


class LlamaMLP(nn.Module):
    def __init__(self, context: ModelContext, index: int) -> None:
        super().__init__()
        hidden, inner = int(context.config["hidden_size"]), int(context.config["intermediate_size"])
        activation = context.config.get("hidden_act") or "silu"
        if activation not in ("silu", "swish"):
            raise ModelError(
                f"config.json's hidden_act is {activation!r}; this architecture is served with 'silu' only"
            )
        bias = bool(context.config.get("mlp_bias", False))
        name = f"model.layers.{index}.mlp"
        self.gate_up_proj = Linear(context, f"{name}.gate_up_proj", hidden, [inner, inner], bias)
        self.down_proj = Linear(context, f"{name}.down_proj", inner, [hidden], bias)

    def forward(self, hidden: torch.Tensor, residual: torch.Tensor) -> torch.Tensor | None:
        """None: the output is in the residual."""
        if dispatch.has_kernels(hidden):
            return self.down_proj.onto(self.gate_up_proj.silu_and_mul(hidden), residual)
        gate, up = self.gate_up_proj(hidden).chunk(2, -1)
        return self.down_proj.onto(functional.silu(gate).mul_(up), residual)


class LlamaLayer(nn.Module):
    attention_class = LlamaAttention

    def __init__(self, context: ModelContext, index: int, window: int | None) -> None:
        super().__init__()
        size, eps = int(context.config["hidden_size"]), float(context.config["rms_norm_eps"])
        self.input_layernorm = RMSNorm(size, eps, context.dtype, context.device)
        self.self_attn = self.attention_class(context, index, window)
        self.post_attention_layernorm = RMSNorm(size, eps, context.dtype, context.device)
        self.mlp = LlamaMLP(context, index)

    def forward(
        self,
        hidden: torch.Tensor | None,
        residual: torch.Tensor | None,
        rotation: Rotation,
        batch: ForwardBatch,
        wanted: torch.Tensor | None,
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """hidden: what is still to be added to the residual, if anything is; residual None: before the first layer."""
        if residual is None:
            assert hidden is not None
            normed, residual = self.input_layernorm(hidden), hidden
        else:
            normed, residual = self.input_layernorm.add(hidden, residual)
        if wanted is not None:
            residual = residual.index_select(0, wanted)
        hidden = self.self_attn(normed, residual, rotation, batch, wanted)
        normed, residual = self.post_attention_layernorm.add(hidden, residual)
        return self.mlp(normed, residual), residual


class LlamaModel(nn.Module):
    def __init__(self, context: ModelContext, layer_class: type[LlamaLayer], windows: list[int | None]) -> None:
        super().__init__()
        config = context.config
        self.embed_tokens = Embedding(
            int(config["vocab_size"]), int(config["hidden_size"]), context.dtype, context.device
        )
        self.layers = nn.ModuleList(layer_class(context, i, window) for i, window in enumerate(windows))
        self.norm = RMSNorm(int(config["hidden_size"]), float(config["rms_norm_eps"]), context.dtype, context.device)


class LlamaForCausalLM(nn.Module):
    layer_class: type[LlamaLayer] = LlamaLayer
    weight_map = WeightMap(
        fused={
            f"{fused}.{kind}": [f"{part}.{kind}" for part in parts]
            for fused, parts in {
                "qkv_proj": ("q_proj", "k_proj", "v_proj"),
                "gate_up_proj": ("gate_proj", "up_proj"),
            }.items()
            for kind in ("weight", "bias")
        },
        # a checkpoint of the decoder alone, as embedding models have it, leaves the first part of the names out
        renames=[(part, f"model.{part}") for part in ("embed_tokens.", "layers.", "norm.")],
        ignored=("rotary_emb.inv_freq",),
    )

    def __init__(self, context: ModelContext) -> None:
        super().__init__()
        config = context.config
        if config.get("is_causal") is False or config.get("use_bidirectional_attention"):
            raise ModelError(
                "config.json asks for attention in both directions; decoders are served, which look back only"
            )
        self.model = LlamaModel(context, self.layer_class, self.windows(config))
        self.cache_spec: list[AttentionSpec] = [layer.self_attn.spec for layer in self.model.layers]  # type: ignore
        self.rotary = Rotary(config, self.cache_spec[0].head_dim, context.max_model_len, context.device)
        self.fused_rope = context.attention.capabilities.fused_rope
        self.lm_head = Linear(context, "lm_head", int(config["hidden_size"]), [int(config["vocab_size"])])
        if config.get("tie_word_embeddings", False):
            self.lm_head.weight = self.model.embed_tokens.weight
            self.lm_head.tied = True
            self.weight_map = WeightMap(
                self.weight_map.renames, self.weight_map.fused, (*self.weight_map.ignored, "lm_head.weight")
            )

    @staticmethod
    def windows(config: Mapping[str, Any]) -> list[int | None]:
        """The sliding window of each layer; None: the whole context."""
        return [None] * int(config["num_hidden_layers"])

    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        hidden: torch.Tensor | None = self.model.embed_tokens(batch.input_ids)
        rotation: Rotation = (self.rotary.cos_sin,)
        if not self.fused_rope:
            rotation = self.rotary.at(batch.positions, self.model.embed_tokens.weight.dtype)
        residual: torch.Tensor | None = None
        for layer in self.model.layers:
            # after the last layer's keys and values are written, nobody needs the tokens that are not asked for
            wanted = batch.wanted if layer is self.model.layers[-1] else None
            hidden, residual = layer(hidden, residual, rotation, batch, wanted)
        assert residual is not None
        return self.model.norm.add(hidden, residual)[0]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.lm_head(hidden)
