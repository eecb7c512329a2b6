"""FlashInfer's two wrappers in plain torch, by its documentation: what our backend hands them must lead to the right
keys by the library's own rules. They take what our backend passes and nothing else, and check what the library does.
"""

from __future__ import annotations

import torch


def segments(indptr: torch.Tensor, indices: torch.Tensor, last_page_len: torch.Tensor, page_size: int) -> list:
    """Per request its pages and its number of keys, by the page table's definition."""
    for array in (indptr, last_page_len):
        assert array.device.type == "cpu" and array.dtype == torch.int32, "planned with on the host"
    assert indices.dtype == torch.int32 and len(indices) == int(indptr[-1]) and int(indptr[0]) == 0
    found = []
    for i in range(len(last_page_len)):
        first, end, last = int(indptr[i]), int(indptr[i + 1]), int(last_page_len[i])
        assert (end == first and last == 0) or 1 <= last <= page_size
        found.append((indices[first:end].long(), max(end - first - 1, 0) * page_size + last))
    return found


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, window_left: int, cap: float, scale: float
) -> torch.Tensor:
    """One request: q [new, heads, dim]; k, v [keys, kv_heads, dim]. The mask is aligned to the last query and key."""
    group = q.shape[1] // k.shape[1]
    k, v = (t.float().repeat_interleave(group, 1) for t in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q.float(), k) * scale
    if cap > 0:
        scores = torch.tanh(scores / cap) * cap
    at = torch.arange(len(q))[:, None] + len(k) - len(q)
    key_at = torch.arange(len(k))[None]
    hidden = (key_at > at) if causal else torch.zeros(len(q), len(k), dtype=torch.bool)
    if window_left >= 0:
        hidden = hidden | (key_at < at - window_left)
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v).to(q.dtype)


class _Wrapper:
    plans = 0
    """Of all wrappers, ever"""

    def __init__(self, float_workspace_buffer: torch.Tensor, kv_layout: str = "NHD", **more: object) -> None:
        assert kv_layout == "NHD" and float_workspace_buffer.dtype == torch.uint8
        assert not float_workspace_buffer[:1000].any(), "must be zeros at first"
        assert more.pop("backend") == "fa2" and more.pop("use_tensor_cores", True) and not more

    def _plan(
        self, starts, indptr, indices, last_page_len, heads, kv_heads, head_dim, page_size, *,
        causal, window_left, logits_soft_cap, sm_scale, q_data_type, kv_data_type,
    ) -> None:  # fmt: skip
        _Wrapper.plans += 1
        assert heads % kv_heads == 0
        self.starts, self.requests = starts, segments(indptr, indices, last_page_len, page_size)
        self.shape, self.page_size = (heads, kv_heads, head_dim), page_size
        self.dtypes = (q_data_type, kv_data_type)
        self.how = (causal, window_left, logits_soft_cap, sm_scale)

    def run(self, q: torch.Tensor, paged_kv_cache: tuple, *, out: torch.Tensor) -> torch.Tensor:
        keys, values = paged_kv_cache
        heads, kv_heads, dim = self.shape
        assert (q.dtype, keys.dtype) == self.dtypes and q.stride(-1) == 1
        assert q.shape[1:] == (heads, dim) and keys.shape[1:] == (self.page_size, kv_heads, dim)
        assert len(q) == int(self.starts[-1]) and out.shape == q.shape
        for i, (pages, length) in enumerate(self.requests):
            a, b = int(self.starts[i]), int(self.starts[i + 1])
            if length == 0:
                out[a:b] = 0
                continue
            k, v = keys[pages].flatten(0, 1)[:length], values[pages].flatten(0, 1)[:length]
            out[a:b] = attend(q[a:b], k, v, *self.how)
        return out


class BatchDecodeWithPagedKVCacheWrapper(_Wrapper):
    def plan(self, indptr, indices, last_page_len, num_qo_heads, num_kv_heads, head_dim, page_size, **how) -> None:
        starts = torch.arange(len(last_page_len) + 1, dtype=torch.int32)
        sizes = (num_qo_heads, num_kv_heads, head_dim, page_size)
        self._plan(starts, indptr, indices, last_page_len, *sizes, causal=False, **how)


class BatchPrefillWithPagedKVCacheWrapper(_Wrapper):
    def plan(
        self, qo_indptr, paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len,
        num_qo_heads, num_kv_heads, head_dim_qk, page_size, **how,
    ) -> None:  # fmt: skip
        assert qo_indptr.device.type == "cpu" and qo_indptr.dtype == torch.int32 and int(qo_indptr[0]) == 0
        sizes = (num_qo_heads, num_kv_heads, head_dim_qk, page_size)
        self._plan(qo_indptr, paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len, *sizes, **how)
