"""(Norm of each query and key head, then) rotary position embedding and the write into the KV cache, in one kernel.

Source: arXiv:2104.09864, the NeoX form (halves). `write_cache` is the write alone.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from core.kernels.launch import cdiv, has_pdl, is_fixed_order, launch, next_power_of_2, options
from core.kernels.references import rope_and_cache_reference

__all__ = ["rope_and_cache", "rope_and_cache_reference", "write_cache"]

# (most tokens, heads in a program, warps): few tokens want many small programs, many tokens want wide ones.
CONFIGS = ((64, 1, 1), (1 << 30, 8, 4))


@triton.jit
def _rope_and_cache_kernel(
    qkv_ptr, cos_sin_ptr, positions_ptr, slots_ptr, keys_ptr, values_ptr, q_weight_ptr, k_weight_ptr,
    stride_token, stride_slot, num_heads, num_kv_heads, eps,
    DIM: tl.constexpr, ROTARY: tl.constexpr, BLOCK_HALF: tl.constexpr, BLOCK_TAIL: tl.constexpr,
    HEADS: tl.constexpr, NORM: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    HALF: tl.constexpr = ROTARY // 2
    h = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    i = tl.arange(0, BLOCK_HALF)
    total = num_heads + 2 * num_kv_heads
    if PDL:
        gdc_launch_dependents()
    position = tl.load(positions_ptr + token)
    slot = tl.load(slots_ptr + token).to(tl.int64)
    cos = tl.load(cos_sin_ptr + position * ROTARY + i, mask=i < HALF, other=0.0).to(tl.float32)[None, :]
    sin = tl.load(cos_sin_ptr + position * ROTARY + HALF + i, mask=i < HALF, other=0.0).to(tl.float32)[None, :]
    if PDL:
        gdc_wait()
    # [HEADS, BLOCK_HALF]
    inside = (h < total)[:, None] & (i < HALF)[None, :]
    source = qkv_ptr + token * stride_token + h[:, None] * DIM + i[None, :]
    first_raw = tl.load(source, mask=inside, other=0.0)
    second_raw = tl.load(source + HALF, mask=inside, other=0.0)
    first, second = first_raw.to(tl.float32), second_raw.to(tl.float32)
    is_query = (h < num_heads)[:, None]
    is_key = ((h >= num_heads) & (h < num_heads + num_kv_heads))[:, None]
    is_value = (h >= num_heads + num_kv_heads)[:, None]
    is_rotated = (h < num_heads + num_kv_heads)[:, None]
    if ROTARY < DIM:
        j = tl.arange(0, BLOCK_TAIL)
        tail_inside = (h < total)[:, None] & (j < DIM - ROTARY)[None, :]
        tail_source = qkv_ptr + token * stride_token + h[:, None] * DIM + ROTARY + j[None, :]
        tail_raw = tl.load(tail_source, mask=tail_inside, other=0.0)
        tail = tail_raw.to(tl.float32)
    if NORM:
        squares = tl.sum(first * first, 1) + tl.sum(second * second, 1)
        if ROTARY < DIM:
            squares += tl.sum(tail * tail, 1)
        scale = tl.rsqrt(squares / DIM + eps)[:, None]
        mask = i < HALF
        wq = tl.load(q_weight_ptr + i, mask=mask, other=0.0).to(tl.float32)[None, :]
        wk = tl.load(k_weight_ptr + i, mask=mask, other=0.0).to(tl.float32)[None, :]
        first = (first * scale).to(first_raw.dtype).to(tl.float32) * tl.where(is_query, wq, wk)
        wq = tl.load(q_weight_ptr + HALF + i, mask=mask, other=0.0).to(tl.float32)[None, :]
        wk = tl.load(k_weight_ptr + HALF + i, mask=mask, other=0.0).to(tl.float32)[None, :]
        second = (second * scale).to(first_raw.dtype).to(tl.float32) * tl.where(is_query, wq, wk)
        if ROTARY < DIM:
            wq = tl.load(q_weight_ptr + ROTARY + j, mask=j < DIM - ROTARY, other=0.0).to(tl.float32)[None, :]
            wk = tl.load(k_weight_ptr + ROTARY + j, mask=j < DIM - ROTARY, other=0.0).to(tl.float32)[None, :]
            tail = (tail * scale).to(first_raw.dtype).to(tl.float32) * tl.where(is_query, wq, wk)
    new_first = tl.where(is_value, first_raw.to(tl.float32), first * cos - second * sin)
    new_second = tl.where(is_value, second_raw.to(tl.float32), second * cos + first * sin)
    new_first, new_second = new_first.to(first_raw.dtype), new_second.to(first_raw.dtype)
    rotated = inside & is_rotated
    tl.store(source, new_first, mask=rotated)
    tl.store(source + HALF, new_second, mask=rotated)
    # the head's place in the cache; the pointer of the other cache is never stored to
    place = slot * stride_slot + i[None, :]
    key_at = place + (h - num_heads)[:, None] * DIM
    value_at = place + (h - num_heads - num_kv_heads)[:, None] * DIM
    written = (tl.where(h < total, slot, -1) >= 0)[:, None]
    write_key = inside & is_key & written
    write_value = inside & is_value & written
    tl.store(keys_ptr + key_at, new_first.to(keys_ptr.dtype.element_ty), mask=write_key)
    tl.store(keys_ptr + key_at + HALF, new_second.to(keys_ptr.dtype.element_ty), mask=write_key)
    tl.store(values_ptr + value_at, new_first.to(values_ptr.dtype.element_ty), mask=write_value)
    tl.store(values_ptr + value_at + HALF, new_second.to(values_ptr.dtype.element_ty), mask=write_value)
    if ROTARY < DIM:
        new_tail = tl.where(is_value, tail_raw.to(tl.float32), tail).to(tail_raw.dtype)
        if NORM:
            tl.store(tail_source, new_tail, mask=tail_inside & is_rotated)
        tail_place = slot * stride_slot + ROTARY + j[None, :]
        key_tail = tail_place + (h - num_heads)[:, None] * DIM
        value_tail = tail_place + (h - num_heads - num_kv_heads)[:, None] * DIM
        keep = tail_inside & written
        tl.store(keys_ptr + key_tail, new_tail.to(keys_ptr.dtype.element_ty), mask=keep & is_key)
        tl.store(values_ptr + value_tail, new_tail.to(values_ptr.dtype.element_ty), mask=keep & is_value)


@triton.jit
def _write_cache_kernel(
    key_ptr, value_ptr, slots_ptr, keys_ptr, values_ptr, stride_key, stride_value, stride_slot, SIZE,
    BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    if PDL:
        gdc_launch_dependents()
    slot = tl.load(slots_ptr + token).to(tl.int64)
    if PDL:
        gdc_wait()
    inside = tl.where(i < SIZE, slot, -1) >= 0
    k = tl.load(key_ptr + token * stride_key + i, mask=inside, other=0.0)
    v = tl.load(value_ptr + token * stride_value + i, mask=inside, other=0.0)
    tl.store(keys_ptr + slot * stride_slot + i, k.to(keys_ptr.dtype.element_ty), mask=inside)
    tl.store(values_ptr + slot * stride_slot + i, v.to(values_ptr.dtype.element_ty), mask=inside)


def check_cache(keys: torch.Tensor, values: torch.Tensor) -> None:
    """Keys and values: [num_blocks, block_size, num_kv_heads, head_dim], contiguous."""
    if keys.shape != values.shape or keys.dim() != 4 or not (keys.is_contiguous() and values.is_contiguous()):
        raise ValueError(
            "keys and values must be contiguous and [num_blocks, block_size, num_kv_heads, head_dim]; "
            f"they are {tuple(keys.shape)} and {tuple(values.shape)}"
        )


def rope_and_cache(
    qkv: torch.Tensor,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    num_heads: int,
    q_weight: torch.Tensor | None = None,
    k_weight: torch.Tensor | None = None,
    eps: float = 1e-6,
) -> torch.Tensor:
    """Rotate the query and key heads of `qkv` in place; write keys and values at `slots` (-1: nowhere).

    qkv: [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim], rows may lie apart; cos_sin: float32
    [max_positions, rotary_dim], cos then sin; positions, slots: int [num_tokens], not made by the kernel in front, which
    need not have ended when they are read. -> qkv
    """
    check_cache(keys, values)
    num_kv_heads, dim = keys.shape[2], keys.shape[3]
    rotary = cos_sin.shape[-1]
    total = num_heads + 2 * num_kv_heads
    if qkv.dim() != 2 or qkv.shape[1] != total * dim or qkv.stride(1) != 1:
        raise ValueError(f"qkv must be [num_tokens, {total * dim}] with contiguous rows; it is {tuple(qkv.shape)}")
    if not cos_sin.is_contiguous() or rotary > dim or rotary % 2:
        raise ValueError(f"cos_sin must be contiguous and at most {dim} wide; it is {tuple(cos_sin.shape)}")
    if (q_weight is None) != (k_weight is None):
        raise ValueError("a norm of the heads needs the weights of both, queries and keys")
    tokens = qkv.shape[0]
    if tokens == 0:
        return qkv
    # a norm sums over a head; how depends on the tile
    sums_alike = is_fixed_order() and q_weight is not None
    heads, warps = CONFIGS[0][1:] if sums_alike else next((h, w) for most, h, w in CONFIGS if tokens <= most)
    pdl = has_pdl(qkv)
    launch(
        _rope_and_cache_kernel, (tokens, cdiv(total, heads)),
        qkv, cos_sin, positions, slots, keys, values,
        qkv if q_weight is None else q_weight, qkv if k_weight is None else k_weight,
        qkv.stride(0), num_kv_heads * dim, num_heads, num_kv_heads, eps,
        DIM=dim, ROTARY=rotary, BLOCK_HALF=next_power_of_2(rotary // 2),
        BLOCK_TAIL=next_power_of_2(max(1, dim - rotary)),
        HEADS=heads, NORM=q_weight is not None, PDL=pdl, **options(pdl, num_warps=warps),
    )  # fmt: skip
    return qkv


def write_cache(
    key: torch.Tensor, value: torch.Tensor, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> None:
    """Write key and value, [num_tokens, num_kv_heads, head_dim] each, at `slots` (-1: nowhere; read as in rope_and_cache)."""
    check_cache(keys, values)
    tokens, (heads, dim) = key.shape[0], keys.shape[2:]
    if key.shape != (tokens, heads, dim) or value.shape != key.shape:
        raise ValueError(f"key and value must be [num_tokens, {heads}, {dim}]; key is {tuple(key.shape)}")
    if tokens == 0:
        return
    # the heads of a token must lie together; tokens may lie apart (views of a fused projection)
    key, value = (t if t.stride(2) == 1 and t.stride(1) == dim else t.contiguous() for t in (key, value))
    block = next_power_of_2(heads * dim)
    pdl = has_pdl(key)
    launch(
        _write_cache_kernel, (tokens,),
        key, value, slots, keys, values, key.stride(0), value.stride(0), heads * dim, heads * dim,
        BLOCK=block, PDL=pdl, **options(pdl, num_warps=4 if block > 256 else 1),
    )  # fmt: skip
