"""Paged attention in torch operations, tuned for CPUs.

Decodes are batched over requests of similar length: their blocks are gathered (only those, never the whole cache) and
one scaled_dot_product_attention takes the query heads of a group as query rows, so keys and values are not repeated.
A lone request whose blocks are neighbours is read where it lies. Prefill chunks run one request at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from core.batch import ForwardBatch
from core.interfaces.attention import AttentionCapabilities, AttentionSpec
from plugins.attention.torch.reference import paged_attention_reference


@dataclass(slots=True)
class DecodeGroup:
    """Decodes of similar length, attended to together."""

    requests: torch.Tensor | None
    """int64 [n], or None: all of the batch's tokens, in order"""
    blocks: torch.Tensor
    """int64 [n * num_blocks]"""
    run: tuple[int, int] | None
    """First block and number, if a single request's blocks lie in a row."""
    shape: tuple[int, int]
    """(n, tokens in num_blocks)"""
    lengths: torch.Tensor
    """int64 [n]"""
    masks: dict[int | None, torch.Tensor]
    """window -> additive mask [n, 1, 1, tokens]"""


@dataclass(slots=True)
class PrefillChunk:
    start: int
    end: int
    length: int
    blocks: torch.Tensor | None
    """int64; None when there is no earlier context: the activations are attended to"""


@dataclass(slots=True)
class TorchPlan:
    slots: torch.Tensor
    stale: torch.Tensor | None
    """int64: slots behind the last token of blocks that this step begins"""
    decodes: list[DecodeGroup]
    prefills: list[PrefillChunk]


class TorchBackend:
    name = "torch"
    capabilities = AttentionCapabilities(
        devices=frozenset({"cpu", "cuda"}),
        dtypes=frozenset({"float32", "bfloat16", "float16"}),
        soft_cap=True,
        alibi=True,
    )

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._buffers: dict[int, torch.Tensor] = {}

    def allocate(
        self, spec: AttentionSpec, num_blocks: int, block_size: int, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (num_blocks, block_size, spec.num_kv_heads, spec.head_dim)
        # zeros: slots that no token has written are masked, and a mask does not stop a NaN (see TorchPlan.stale)
        return torch.zeros(shape, dtype=dtype, device=self.device), torch.zeros(shape, dtype=dtype, device=self.device)

    def plan(self, batch: ForwardBatch) -> None:
        meta = batch.attention
        decodes = []
        if meta.num_decodes:
            num_blocks = -(-meta.seq_lens_host[: meta.num_decodes] // meta.block_size)
            # lengths within a factor of two share a group: at most twice the needed bytes are read
            buckets = np.frexp(num_blocks.astype(np.float64) - 0.5)[1]
            for bucket in np.unique(buckets).tolist():
                members = np.nonzero(buckets == bucket)[0]
                decodes.append(self._group(batch, members, int(num_blocks[members].max())))
        meta.state = TorchPlan(meta.slot_mapping, self._stale_slots(batch), decodes, self.prefill_chunks(batch))

    def prefill_chunks(self, batch: ForwardBatch) -> list[PrefillChunk]:
        """Of the requests behind the decodes."""
        meta = batch.attention
        prefills = []
        start = meta.num_decodes
        for i in range(meta.num_decodes, meta.num_requests):
            length, new = int(meta.seq_lens_host[i]), int(meta.query_lens_host[i])
            blocks = None
            if length > new:
                blocks = meta.block_table[i, : -(-length // meta.block_size)].long()
            prefills.append(PrefillChunk(start, start + new, length, blocks))
            start += new
        return prefills

    def _stale_slots(self, batch: ForwardBatch) -> torch.Tensor | None:
        """A block comes back with its last owner's numbers behind our tokens. They are masked, but were they NaN, one
        broken sequence would spoil another: they are zeroed when the block is begun."""
        meta = batch.attention
        rest = -meta.seq_lens_host % meta.block_size
        written = meta.block_size - rest
        begun = np.nonzero((rest > 0) & (meta.query_lens_host >= written))[0]
        if len(begun) == 0:
            return None
        counts = rest[begun]
        last = np.repeat(np.cumsum(meta.query_lens_host)[begun] - 1, counts)
        offset = np.arange(len(last)) - np.repeat(np.cumsum(counts) - counts, counts) + 1
        at = torch.from_numpy(np.stack([last, offset]).astype(np.int64)).to(self.device)
        return meta.slot_mapping.index_select(0, at[0]) + at[1]

    def _group(self, batch: ForwardBatch, members: np.ndarray, num_blocks: int) -> DecodeGroup:
        meta = batch.attention
        whole = len(members) == meta.num_requests
        index = torch.from_numpy(members).to(self.device)
        table = meta.block_table[: len(members)] if whole else meta.block_table.index_select(0, index)
        blocks = table[:, :num_blocks].long()
        lengths = meta.seq_lens.index_select(0, index).long()
        run = None
        if len(members) == 1 and self.device.type == "cpu":
            ids = blocks[0]
            if num_blocks == 1 or bool((ids[1:] - ids[:-1] == 1).all()):
                run = (int(ids[0]), num_blocks)
        tokens = num_blocks * meta.block_size
        # entries behind a sequence's own blocks are stale: read its first block instead, which is masked there
        used = (lengths + meta.block_size - 1) // meta.block_size
        blocks = torch.where(torch.arange(num_blocks, device=self.device) < used[:, None], blocks, blocks[:, :1])
        return DecodeGroup(None if whole else index, blocks.reshape(-1), run, (len(members), tokens), lengths, {})

    def forward(
        self,
        spec: AttentionSpec,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cache: tuple[torch.Tensor, torch.Tensor],
        batch: ForwardBatch,
    ) -> torch.Tensor:
        plan: TorchPlan = batch.attention.state
        keys, values = cache
        keys.view(-1, *keys.shape[2:]).index_copy_(0, plan.slots, key.to(keys.dtype))
        values.view(-1, *values.shape[2:]).index_copy_(0, plan.slots, value.to(values.dtype))
        if plan.stale is not None:
            keys.view(-1, *keys.shape[2:]).index_fill_(0, plan.stale, 0)
            values.view(-1, *values.shape[2:]).index_fill_(0, plan.stale, 0)
        if spec.soft_cap is not None or spec.alibi_slopes is not None:
            return paged_attention_reference(spec, query, keys, values, batch)
        if len(plan.decodes) == 1 and not plan.prefills:
            return self._decode(spec, query, keys, values, plan.decodes[0])
        out = torch.empty_like(query)
        for group in plan.decodes:
            assert group.requests is not None or not plan.prefills
            mine = query if group.requests is None else query.index_select(0, group.requests)
            result = self._decode(spec, mine, keys, values, group)
            if group.requests is None:
                out.copy_(result)
            else:
                out.index_copy_(0, group.requests, result)
        self.attend_prefills(spec, query, key, value, keys, values, batch, out)
        return out

    def attend_prefills(
        self,
        spec: AttentionSpec,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        batch: ForwardBatch,
        out: torch.Tensor,
    ) -> None:
        """Write into `out` the rows of the plan's prompts; keys and values are in the cache already."""
        for chunk in batch.attention.state.prefills:
            part = slice(chunk.start, chunk.end)
            if chunk.blocks is None:
                k, v = key[part], value[part]
            else:
                k = self._gather(0, keys, chunk.blocks).flatten(0, 1)[: chunk.length].to(query.dtype)
                v = self._gather(1, values, chunk.blocks).flatten(0, 1)[: chunk.length].to(query.dtype)
            out[part] = self._prefill(spec, query[part], k, v)

    def _gather(self, which: int, cache: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
        """The blocks in a row, in a buffer that every layer reuses: fresh memory costs up to nine times the copy."""
        shape = (len(blocks), *cache.shape[1:])
        size = len(blocks) * cache[0].numel()
        buffer = self._buffers.get(which)
        if buffer is None or buffer.numel() < size or buffer.dtype != cache.dtype:
            buffer = self._buffers[which] = torch.empty(size + size // 4, dtype=cache.dtype, device=self.device)
        return torch.index_select(cache, 0, blocks, out=buffer[:size].view(shape))

    def _decode(
        self, spec: AttentionSpec, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, group: DecodeGroup
    ) -> torch.Tensor:
        n, tokens = group.shape
        if group.run is not None:
            first, count = group.run
            k, v = keys[first : first + count], values[first : first + count]
        else:
            k, v = self._gather(0, keys, group.blocks), self._gather(1, values, group.blocks)
        k = k.view(n, tokens, spec.num_kv_heads, spec.head_dim).transpose(1, 2).to(query.dtype)
        v = v.view(n, tokens, spec.num_kv_heads, spec.head_dim).transpose(1, 2).to(query.dtype)
        if spec.window not in group.masks:
            at = torch.arange(tokens, device=self.device)
            hidden = at >= group.lengths[:, None]
            if spec.window is not None:
                hidden |= at < group.lengths[:, None] - spec.window
            mask = torch.zeros(hidden.shape, dtype=query.dtype, device=self.device).masked_fill_(hidden, float("-inf"))
            group.masks[spec.window] = mask[:, None, None]
        # the query heads of a group are the rows of one small matrix: keys and values are read once for all of them
        q = query.reshape(n, spec.num_kv_heads, spec.num_heads // spec.num_kv_heads, spec.head_dim)
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=group.masks[spec.window], scale=spec.scale)
        return out.reshape(n, spec.num_heads, spec.head_dim)

    def _prefill(self, spec: AttentionSpec, query: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        new, length, heads = query.shape[0], k.shape[0], spec.num_kv_heads
        group = spec.num_heads // heads
        q = query.view(new, heads, group, spec.head_dim).permute(1, 2, 0, 3)
        # stride 0 over the heads of a group: nothing is repeated in memory
        k = k.transpose(0, 1).unsqueeze(1).expand(heads, group, length, spec.head_dim)
        v = v.transpose(0, 1).unsqueeze(1).expand(heads, group, length, spec.head_dim)
        windowed = spec.window is not None and length > spec.window
        if new == length and not windowed:
            out = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=spec.scale)
        else:
            distance = (
                torch.arange(length - new, length, device=self.device)[:, None]
                - torch.arange(length, device=self.device)[None]
            )
            seen = distance >= 0
            if spec.window is not None:
                seen &= distance < spec.window
            out = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=spec.scale)
        return out.permute(2, 0, 1, 3).reshape(new, spec.num_heads, spec.head_dim)
