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
from torch.nn import functional

from core.batch import ForwardBatch
from core.interfaces.attention import AttentionCapabilities, AttentionSpec
from core.kernels.launch import is_fixed_order
from core.kernels.rope import rope_and_cache, write_cache
from plugins.attention.triton.decode import decode_attention
from plugins.attention.triton.fixed import TILE, fixed_attention
from plugins.attention.triton.prefill import SHORT, SHORT_WIDE, choose_config, prefill_attention

CUDNN_STEP = 2048
"""Prompts go to cuDNN in whole pieces of so many tokens; what is behind them goes to the kernel here."""
MAX_CAPTURED_PROMPTS = 32
"""Prompts, or their pieces, in a captured step of up to 2048 tokens; in a longer one as many as it has tiles."""


@dataclass(slots=True)
class TritonPlan:
    """A step's prefill work: host-made lists of (request, tile), the heaviest first; made once per tile height."""

    query_lens: np.ndarray
    """int64 [num_prefills]"""
    seq_lens: np.ndarray
    whole: list[tuple[int, int]]
    """(first token, tokens) of pieces from a request's beginning that cuDNN takes"""
    tiles: dict[tuple[int, bool], torch.Tensor]
    """tiles on the device, by what was asked for"""


@dataclass(slots=True)
class CapturedPlan:
    """The same in a captured step: all keys and values are read from the cache."""

    tiles: torch.Tensor
    """int32 [n, 2]: (request, tile), request -1 where there is none"""


class TritonBackend:
    name = "triton"
    capabilities = AttentionCapabilities(
        devices=frozenset({"cuda"}),
        dtypes=frozenset({"bfloat16", "float16", "float32"}),
        soft_cap=True,
        alibi=True,
        graph_capture=True,
        mixed_capture=True,
        fused_rope=True,
        fixed_order=True,
        cache_dtypes=frozenset({"bfloat16", "float16", "float32", "fp8_e4m3", "fp8_e5m2"}),
    )

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._slopes: dict[tuple[float, ...], torch.Tensor] = {}
        self._has_cudnn = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9

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
        query_lens = meta.query_lens_host[first : meta.num_requests].astype(np.int64)
        seq_lens = meta.seq_lens_host[first : meta.num_requests].astype(np.int64)
        meta.state = TritonPlan(query_lens, seq_lens, [], {})
        if self._has_cudnn and not is_fixed_order():
            # lengths in steps, so that cuDNN does not have to build a plan for every length there is
            pieces = np.where(query_lens == seq_lens, query_lens // CUDNN_STEP * CUDNN_STEP, 0)
            starts = first + np.cumsum(query_lens) - query_lens
            meta.state.whole = [(int(s), int(n)) for s, n in zip(starts, pieces, strict=True) if n]

    def graph_words(self, num_tokens: int) -> int:
        tiles = num_tokens // _captured_rows()
        return 2 * (tiles + max(MAX_CAPTURED_PROMPTS, tiles))

    def graph_state(self, words: torch.Tensor) -> CapturedPlan:
        return CapturedPlan(words.view(-1, 2))

    def graph_fill(self, words: np.ndarray, query_lens: np.ndarray, seq_lens: np.ndarray, first_request: int) -> bool:
        if self._has_cudnn and len(query_lens) and query_lens.max() >= CUDNN_STEP:
            return False  # what is captured is made for shorter prompts
        tiles, _ = list_tiles(query_lens, seq_lens, first_request, _captured_rows())
        if tiles.size > words.size:
            return False
        words[: tiles.size] = tiles.reshape(-1)
        words[tiles.size :] = -1
        return True

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
        if is_fixed_order():
            self._attend_in_order(spec, query, keys, values, batch, out, slopes)
            return out
        if n:
            decode_attention(
                spec,
                query[:n],
                keys,
                values,
                meta.block_table,
                meta.seq_lens if meta.decode_lens is None else meta.decode_lens,
                out[:n],
                slopes,
                common=meta.common_prefix,
            )
        plan: TritonPlan | CapturedPlan | None = meta.state
        if plan is None:
            return out
        if isinstance(plan, CapturedPlan):
            config = SHORT if spec.head_dim <= 128 and query.element_size() <= 2 else SHORT_WIDE
            fixed = (meta.block_table, meta.query_start_loc, meta.seq_lens)
            prefill_attention(
                spec, query, keys, values, *fixed, plan.tiles, out, paged=True, slopes=slopes, config=config
            )
            return out
        takes = query.dtype in (torch.bfloat16, torch.float16) and spec.head_dim in (64, 128)
        whole = plan.whole if takes and not (spec.window or spec.soft_cap or spec.alibi_slopes) else []
        for first, count in whole:
            got = cudnn_attention(spec, *(t[first : first + count] for t in (query, key, value)))
            if count == len(out):
                return got
            out[first : first + count] = got
        fixed = (meta.block_table, meta.query_start_loc, meta.seq_lens)
        for paged in (False, True):
            config = choose_config(query, paged, int(plan.query_lens.max()))
            tiles = self._tiles(plan, config.rows, paged, bool(whole), n)
            if not len(tiles):
                continue
            k, v = (keys, values) if paged else (together(key), together(value))
            prefill_attention(spec, query, k, v, *fixed, tiles, out, paged=paged, slopes=slopes, config=config)
        return out

    def _attend_in_order(
        self,
        spec: AttentionSpec,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        batch: ForwardBatch,
        out: torch.Tensor,
        slopes: torch.Tensor | None,
    ) -> None:
        """The same with one kernel for everything, which reads each request's keys in one order."""
        meta = batch.attention
        n = meta.num_decodes
        starts = meta.query_start_loc
        if n:
            lens = (meta.seq_lens if meta.decode_lens is None else meta.decode_lens)[:n]
            fixed_attention(spec, query, keys, values, meta.block_table, starts, lens, out, slopes=slopes)
        plan: TritonPlan | CapturedPlan | None = meta.state
        if plan is None:
            return
        if isinstance(plan, CapturedPlan):
            parts = [plan.tiles]
        else:
            parts = [self._tiles(plan, TILE, paged, False, n) for paged in (False, True)]
        for tiles in parts:
            fixed_attention(
                spec, query, keys, values, meta.block_table, starts, meta.seq_lens, out, tiles=tiles, slopes=slopes
            )

    def _tiles(self, plan: TritonPlan, rows: int, paged: bool, skip_whole: bool, first: int) -> torch.Tensor:
        """The tiles of requests that are, or are not, to be read from the cache; made at the first layer of a kind."""
        key = (2 * rows + skip_whole, paged)
        if key not in plan.tiles:
            pairs, has_context = list_tiles(plan.query_lens, plan.seq_lens, first, rows)
            mine = has_context == paged
            if skip_whole and not paged:
                taken = plan.query_lens // CUDNN_STEP * CUDNN_STEP
                mine &= pairs[:, 1] * rows >= taken[pairs[:, 0] - first]
            sent = torch.from_numpy(np.ascontiguousarray(pairs[mine]))
            if self.device.type == "cuda":
                sent = sent.pin_memory().to(self.device, non_blocking=True)
            plan.tiles[key] = sent
        return plan.tiles[key]

    def _alibi(self, spec: AttentionSpec) -> torch.Tensor | None:
        if spec.alibi_slopes is None:
            return None
        if spec.alibi_slopes not in self._slopes:
            slopes = torch.tensor(spec.alibi_slopes, dtype=torch.float32) * math.log2(math.e)
            self._slopes[spec.alibi_slopes] = slopes.to(self.device)
        return self._slopes[spec.alibi_slopes]


def cudnn_attention(spec: AttentionSpec, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """One request from its beginning, through cuDNN: 657 TFLOP/s at 16384 tokens (see prefill.py for ours)."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    # [1, heads, tokens, head_dim]
    q, k, v = (t.transpose(0, 1).unsqueeze(0) for t in (query, key, value))
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        got = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=spec.scale, enable_gqa=True)
    return got.squeeze(0).transpose(0, 1)


def _captured_rows() -> int:
    """New tokens in a tile of a captured step."""
    return TILE if is_fixed_order() else SHORT.rows


def list_tiles(
    query_lens: np.ndarray, seq_lens: np.ndarray, first_request: int, rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """int32 [n, 2]: (request, tile of `rows` new tokens), and whether the request has earlier context."""
    counts = -(-query_lens // rows)
    requests = np.repeat(np.arange(len(counts)), counts)
    tile = np.arange(len(requests)) - np.repeat(np.cumsum(counts) - counts, counts)
    context = seq_lens - query_lens
    # by the keys that a tile has to go through, most first: the tail is then short
    order = np.argsort(-(context[requests] + tile * rows), kind="stable")
    pairs = np.stack([requests + first_request, tile], 1)[order].astype(np.int32)
    return pairs, context[requests[order]] > 0


def together(x: torch.Tensor) -> torch.Tensor:
    """The heads of a token side by side, as the kernels want them; tokens may lie apart."""
    _, stride, step = x.stride()
    return x if step == 1 and stride == x.shape[2] else x.contiguous()
