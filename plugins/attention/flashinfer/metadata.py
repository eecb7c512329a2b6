"""A step as FlashInfer wants it: requests' blocks one behind the other, with where each request's begin.

Source of the layout: https://docs.flashinfer.ai/tutorials/kv_layout.html (page table, NHD).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from core.batch import AttentionMetadata


@dataclass(frozen=True, slots=True)
class PagedRequests:
    """Some requests of a step. Arrays that the library plans with are on the host, so that it never waits."""

    query_indptr: torch.Tensor
    """int32 [n + 1], host: request i has the rows query_indptr[i] to query_indptr[i + 1] of these requests' queries"""
    block_indptr: torch.Tensor
    """int32 [n + 1], host: request i has blocks[block_indptr[i] : block_indptr[i + 1]]"""
    blocks: torch.Tensor
    """int32 [block_indptr[n]], device"""
    last_block_len: torch.Tensor
    """int32 [n], host: tokens in the last block, 1 to block_size; 0 for a request of no length"""


def paged_requests(meta: AttentionMetadata, first: int, last: int) -> PagedRequests:
    """Of requests `first` to `last` (not with it)."""
    lengths = meta.seq_lens_host[first:last].astype(np.int64)
    counts = -(-lengths // meta.block_size)
    last_block_len = np.where(lengths > 0, (lengths - 1) % meta.block_size + 1, 0)
    block_indptr = _indptr(counts)
    return PagedRequests(
        query_indptr=_indptr(meta.query_lens_host[first:last]),
        block_indptr=block_indptr,
        blocks=list_blocks(meta, first, last, int(block_indptr[-1])),
        last_block_len=torch.from_numpy(last_block_len.astype(np.int32)),
    )


def list_blocks(meta: AttentionMetadata, first: int, last: int, total: int) -> torch.Tensor:
    """int32 [total]: the requests' own blocks, without what stands behind them in the table. Made on the device, of
    what is there already; `total` is known on the host, so nothing waits."""
    counts = (meta.seq_lens[first:last] + meta.block_size - 1) // meta.block_size
    ends = counts.cumsum(0)
    requests = torch.arange(last - first, device=counts.device)
    row = requests.repeat_interleave(counts, output_size=total)
    column = torch.arange(total, device=counts.device) - (ends - counts)[row]
    return meta.block_table[first:last].reshape(-1)[row * meta.block_table.shape[1] + column].int()


def _indptr(counts: np.ndarray) -> torch.Tensor:
    ends = np.zeros(len(counts) + 1, np.int32)
    np.cumsum(counts, out=ends[1:])
    return torch.from_numpy(ends)
