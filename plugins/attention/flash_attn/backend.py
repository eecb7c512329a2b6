"""The attention backend "flash_attn": FlashAttention 2 of the package flash-attn, over the engine's own blocks.

Decodes go to flash_attn_with_kvcache, which reads lengths and block tables from device memory and so can be captured
in a CUDA graph; prompts go to flash_attn_varlen_func, over the cache where one of them has earlier context.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import torch

from core.batch import ForwardBatch
from core.errors import ConfigError
from core.interfaces.attention import AttentionCapabilities, AttentionSpec
from plugins.attention.flash_attn.metadata import Prompts, prompts_of

MIN_VERSION = (2, 6)
"""Block tables in both functions, and soft caps."""
MIN_CAPABILITY = (8, 0)


class FlashAttnBackend:
    name = "flash_attn"
    capabilities = AttentionCapabilities(
        devices=frozenset({"cuda"}),
        dtypes=frozenset({"bfloat16", "float16"}),
        head_dims=frozenset(range(8, 257, 8)),
        soft_cap=True,
        alibi=True,
        # nothing is planned on the host: the number of splits follows the width of the block table, all else is read
        # from device memory. Steps with prompts are not: the grid follows the host's max_seqlen_q
        graph_capture=True,
        fused_rope=True,
        # its splits depend on the whole batch
        fixed_order=False,
        casts_cache=False,
        # "Paged KV cache block size must be divisible by 256" (csrc/flash_attn/flash_api.cpp)
        block_sizes=frozenset({256, 512, 1024}),
    )

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._check_device(device)
        self._library = self._import()
        self._slopes: dict[tuple[float, ...], torch.Tensor] = {}

    # ---- what differs where the library itself is not there (tests)

    def _check_device(self, device: torch.device) -> None:
        """Raises ConfigError."""
        if device.type != "cuda":
            raise ConfigError(
                f"attention backend 'flash_attn' runs on NVIDIA GPUs, and the device is {device}; "
                "use --attention-backend auto"
            )
        capability = torch.cuda.get_device_capability(device)
        if torch.version.hip is not None or capability < MIN_CAPABILITY:
            raise ConfigError(
                f"attention backend 'flash_attn' needs an NVIDIA GPU of capability 8.0 or newer, this one has "
                f"{capability[0]}.{capability[1]}; use --attention-backend auto"
            )

    def _import(self) -> ModuleType:
        """Raises ConfigError if the library cannot work here."""
        how = "pip install --no-build-isolation 'backplane[flash-attn]'"
        try:
            library = importlib.import_module("flash_attn")
        except Exception as error:  # built for another torch, a CUDA library that is not there
            raise ConfigError(
                f"attention backend 'flash_attn': the package does not import ({type(error).__name__}: {error}); "
                f"build it for this torch with {how}, or use --attention-backend auto"
            ) from error
        version = str(library.__version__)
        major, minor = (version.split(".") + ["0"])[:2]
        if major.isdigit() and minor.isdigit() and (int(major), int(minor)) < MIN_VERSION:
            raise ConfigError(
                f"attention backend 'flash_attn' needs flash-attn 2.6 or newer, {version} is installed; "
                f"{how}, or use --attention-backend auto"
            )
        return library

    def _write(
        self, key: torch.Tensor, value: torch.Tensor, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> None:
        from core.kernels.rope import write_cache

        write_cache(key, value, slots, keys, values)

    def _rotate_and_write(self, *arguments: Any) -> None:
        from core.kernels.rope import rope_and_cache

        rope_and_cache(*arguments)

    # ---- the contract

    def allocate(
        self, spec: AttentionSpec, num_blocks: int, block_size: int, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (num_blocks, block_size, spec.num_kv_heads, spec.head_dim)
        return torch.zeros(shape, dtype=dtype, device=self.device), torch.zeros(shape, dtype=dtype, device=self.device)

    def plan(self, batch: ForwardBatch) -> None:
        batch.attention.state = prompts_of(batch.attention)

    def forward(
        self,
        spec: AttentionSpec,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cache: tuple[torch.Tensor, torch.Tensor],
        batch: ForwardBatch,
    ) -> torch.Tensor:
        self._write(key, value, batch.attention.slot_mapping, *cache)
        return self._attend(spec, query, key, value, cache, batch)

    def forward_rope(
        self,
        spec: AttentionSpec,
        qkv: torch.Tensor,
        cos_sin: torch.Tensor,
        cache: tuple[torch.Tensor, torch.Tensor],
        batch: ForwardBatch,
        q_weight: torch.Tensor | None = None,
        k_weight: torch.Tensor | None = None,
        eps: float = 1e-6,
    ) -> torch.Tensor:
        """As `forward`, from the projection: norm the heads (if weights are given), rotate, write, attend.

        qkv: [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim], changed in place;
        cos_sin: float32 [max_positions, rotary_dim] -> [num_tokens, num_heads, head_dim]
        """
        slots = batch.attention.slot_mapping
        self._rotate_and_write(qkv, cos_sin, batch.positions, slots, *cache, spec.num_heads, q_weight, k_weight, eps)
        heads = qkv.view(qkv.shape[0], spec.num_heads + 2 * spec.num_kv_heads, spec.head_dim)
        query, key, value = heads.split([spec.num_heads, spec.num_kv_heads, spec.num_kv_heads], 1)
        return self._attend(spec, query, key, value, cache, batch)

    def _attend(
        self,
        spec: AttentionSpec,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cache: tuple[torch.Tensor, torch.Tensor],
        batch: ForwardBatch,
    ) -> torch.Tensor:
        meta = batch.attention
        keys, values = cache
        shared: dict[str, Any] = {
            "softmax_scale": spec.scale,
            "causal": True,
            # the library counts the tokens before the newest
            "window_size": (-1, -1) if spec.window is None else (spec.window - 1, 0),
            "softcap": spec.soft_cap or 0.0,
            "alibi_slopes": self._alibi(spec),
        }
        parts = []
        n = meta.num_decodes
        if n:
            got = self._library.flash_attn_with_kvcache(
                query[:n].unsqueeze(1),
                keys,
                values,
                cache_seqlens=meta.seq_lens[:n],
                block_table=meta.block_table[:n],
                **shared,
            )
            parts.append(got.squeeze(1))
        prompts: Prompts | None = meta.state
        if prompts is not None:
            paged = prompts.block_table is not None
            parts.append(
                self._library.flash_attn_varlen_func(
                    query[n:],
                    keys if paged else key[n:],
                    values if paged else value[n:],
                    prompts.query_starts,
                    prompts.key_starts,
                    prompts.max_query_len,
                    prompts.max_seq_len,
                    block_table=prompts.block_table,
                    **shared,
                )
            )
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _alibi(self, spec: AttentionSpec) -> torch.Tensor | None:
        if spec.alibi_slopes is None:
            return None
        if spec.alibi_slopes not in self._slopes:
            slopes = torch.tensor(spec.alibi_slopes, dtype=torch.float32, device=self.device)
            self._slopes[spec.alibi_slopes] = slopes
        return self._slopes[spec.alibi_slopes]
