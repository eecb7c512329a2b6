"""How many KV blocks there are room for, by arithmetic before anything is allocated."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from core.config import EngineConfig
from core.errors import CapacityError
from core.interfaces.attention import AttentionSpec


def bytes_per_block(specs: Sequence[AttentionSpec], block_size: int, dtype: torch.dtype) -> int:
    """Keys and values of one block, over all layers."""
    return sum(2 * block_size * s.num_kv_heads * s.head_dim * dtype.itemsize for s in specs)


def count_blocks(
    config: EngineConfig, block_bytes: int, max_model_len: int, device: torch.device, used_bytes: int
) -> tuple[int, int]:
    """(blocks, max_model_len). `used_bytes`: what weights and a step's activations take of a GPU.

    Raises CapacityError when a request of max_model_len does not fit, unless it was left unset and `fit` is on.
    """
    cache, block_size = config.cache, config.cache.block_size
    useful = config.scheduler.max_num_seqs * -(-max_model_len // block_size)
    if cache.num_blocks is not None:
        num_blocks = cache.num_blocks
    else:
        if cache.kv_cache_memory_bytes is not None:
            room = cache.kv_cache_memory_bytes
        elif device.type == "cuda":
            total = torch.cuda.get_device_properties(device).total_memory
            room = int(total * cache.gpu_memory_utilization) - used_bytes
        else:
            room = cache.cpu_kv_cache_bytes
        num_blocks = max(0, min(useful, room // block_bytes))
    fits = num_blocks * block_size
    if fits >= max_model_len:
        return num_blocks, max_model_len
    if cache.fit and config.model.max_model_len is None and fits >= block_size:
        return num_blocks, fits
    size = "cpu_kv_cache_bytes" if device.type == "cpu" else "gpu_memory_utilization"
    raise CapacityError(
        f"the KV cache holds {fits} tokens ({num_blocks} blocks of {block_size}) and one request may need "
        f"{max_model_len}; set max_model_len={fits} or less, raise {size}, or pass fit=True"
    )
