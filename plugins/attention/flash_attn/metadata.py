"""A step's prompts as flash-attn wants them: where each one's queries and keys begin."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from core.batch import AttentionMetadata


@dataclass(frozen=True, slots=True)
class Prompts:
    """The requests behind a step's decodes."""

    query_starts: torch.Tensor
    """int32 [n + 1], device: prompt i has rows query_starts[i] to query_starts[i + 1] of the prompts' queries"""
    key_starts: torch.Tensor
    """int32 [n + 1], device: the sums of the lengths; with a block table the library takes differences of them alone"""
    block_table: torch.Tensor | None
    """int32 [n, max_blocks], or None: no prompt has earlier context, the activations hold all keys"""
    max_query_len: int
    max_seq_len: int


def prompts_of(meta: AttentionMetadata) -> Prompts | None:
    """None: every request is a decode."""
    n, end = meta.num_decodes, meta.num_requests
    if n >= end:
        return None
    query_lens, seq_lens = meta.query_lens_host[n:end], meta.seq_lens_host[n:end]
    # a decode is one token: the prompts' rows begin at n
    query_starts = meta.query_start_loc[n : end + 1] - n
    fresh = bool((query_lens == seq_lens).all())
    if fresh:
        key_starts = query_starts
    else:
        key_starts = torch.zeros_like(query_starts)
        torch.cumsum(meta.seq_lens[n:end], 0, out=key_starts[1:])
    table = None if fresh else meta.block_table[n:end]
    return Prompts(query_starts, key_starts, table, int(query_lens.max()), int(seq_lens.max()))
