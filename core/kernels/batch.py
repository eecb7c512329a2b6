"""A step's inputs, made on the device from rows and counts: token ids, positions, slots, lengths, block tables.

The host sends one small array a step; last tokens, block tables and everything by token are on the device already.
The host's version of the same is core/runner/input_batch.py.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from core.kernels.launch import launch


@triton.jit
def _prepare_decodes_kernel(
    packed_ptr, token_ids_ptr, table_ptr, input_ids_ptr, positions_ptr, slots_ptr, lengths_ptr, out_table_ptr,
    stride_packed, stride_tokens, stride_table, stride_out,
    BLOCK_SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: one request with one new token, or one row of padding (row -1)."""
    i = tl.program_id(0)
    row = tl.load(packed_ptr + i).to(tl.int64)
    computed = tl.load(packed_ptr + stride_packed + i)
    if row < 0:
        tl.store(input_ids_ptr + i, 0)
        tl.store(positions_ptr + i, 0)
        tl.store(slots_ptr + i, -1)
        tl.store(lengths_ptr + i, 0)
    else:
        token = tl.load(token_ids_ptr + row * stride_tokens + computed)
        tl.store(input_ids_ptr + i, token.to(tl.int64))
        tl.store(positions_ptr + i, computed.to(tl.int64))
        block = tl.load(table_ptr + row * stride_table + computed // BLOCK_SIZE).to(tl.int64)
        tl.store(slots_ptr + i, block * BLOCK_SIZE + computed % BLOCK_SIZE)
        tl.store(lengths_ptr + i, computed + 1)
        blocks = computed // BLOCK_SIZE + 1
        for at in range(0, blocks, BLOCK):
            j = at + tl.arange(0, BLOCK)
            entry = tl.load(table_ptr + row * stride_table + j, mask=j < blocks, other=0)
            tl.store(out_table_ptr + i.to(tl.int64) * stride_out + j, entry, mask=j < blocks)


def prepare_decodes_reference(
    packed: torch.Tensor,
    token_ids: torch.Tensor,
    block_table: torch.Tensor,
    block_size: int,
    input_ids: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    seq_lens: torch.Tensor,
    out_table: torch.Tensor,
) -> None:
    """The specification of prepare_decodes."""
    real = packed[0] >= 0
    row, at = packed[0].clamp(min=0).long(), packed[1].long()
    input_ids.copy_(torch.where(real, token_ids[row, at].long(), 0))
    positions.copy_(torch.where(real, at, 0))
    slots.copy_(torch.where(real, block_table[row, at // block_size].long() * block_size + at % block_size, -1))
    seq_lens.copy_(torch.where(real, at + 1, 0))
    for i in range(packed.shape[1]):
        if real[i]:
            count = int(at[i]) // block_size + 1
            out_table[i, :count] = block_table[row[i], :count]


def prepare_decodes(
    packed: torch.Tensor,
    token_ids: torch.Tensor,
    block_table: torch.Tensor,
    block_size: int,
    input_ids: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    seq_lens: torch.Tensor,
    out_table: torch.Tensor,
) -> None:
    """Fill the inputs of a step in which every request brings one token.

    packed: int32 [2, n]: the request's row (-1: padding) and its number of computed tokens; token_ids: int32
    [rows, length]; block_table: int32 [rows, blocks]. Written: input_ids, positions, slots int64 [n], seq_lens int32
    [n], out_table int32 [n, blocks] (as many entries as a request has blocks; the rest stays as it was).
    """
    count = packed.shape[1]
    if packed.dtype != torch.int32 or packed.stride(1) != 1:
        raise ValueError("packed must be int32 [2, n] with contiguous rows")
    launch(
        _prepare_decodes_kernel, (count,),
        packed, token_ids, block_table, input_ids, positions, slots, seq_lens, out_table,
        packed.stride(0), token_ids.stride(0), block_table.stride(0), out_table.stride(0),
        BLOCK_SIZE=block_size, BLOCK=256, num_warps=2,
    )  # fmt: skip


@triton.jit
def _prepare_mixed_kernel(
    packed_ptr, token_ids_ptr, table_ptr, input_ids_ptr, positions_ptr, slots_ptr, lengths_ptr, decode_lens_ptr,
    out_table_ptr, stride_tokens, stride_table, stride_out, ROWS, num_tokens,
    BLOCK_SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: one request; the last one: the tokens that pad."""
    i = tl.program_id(0)
    n = tl.arange(0, BLOCK)
    starts_ptr = packed_ptr + 2 * ROWS
    if i < ROWS:
        row = tl.load(packed_ptr + i).to(tl.int64)
        if row < 0:
            tl.store(lengths_ptr + i, 0)
            tl.store(decode_lens_ptr + i, 0)
        else:
            computed = tl.load(packed_ptr + ROWS + i)
            start = tl.load(starts_ptr + i)
            count = tl.load(starts_ptr + i + 1) - start
            for at in range(0, count, BLOCK):
                inside = at + n < count
                position = computed + at + n
                token = tl.load(token_ids_ptr + row * stride_tokens + position, mask=inside, other=0)
                tl.store(input_ids_ptr + start + at + n, token.to(tl.int64), mask=inside)
                tl.store(positions_ptr + start + at + n, position.to(tl.int64), mask=inside)
                block = tl.load(table_ptr + row * stride_table + position // BLOCK_SIZE, mask=inside, other=0)
                slot = block.to(tl.int64) * BLOCK_SIZE + position % BLOCK_SIZE
                tl.store(slots_ptr + start + at + n, slot, mask=inside)
            length = computed + count
            tl.store(lengths_ptr + i, length)
            num_decodes = tl.load(packed_ptr + 3 * ROWS + 1)
            tl.store(decode_lens_ptr + i, tl.where(i < num_decodes, length, 0))
            blocks = (length + BLOCK_SIZE - 1) // BLOCK_SIZE
            for at in range(0, blocks, BLOCK):
                j = at + n
                entry = tl.load(table_ptr + row * stride_table + j, mask=j < blocks, other=0)
                tl.store(out_table_ptr + i.to(tl.int64) * stride_out + j, entry, mask=j < blocks)
    else:
        used = tl.load(starts_ptr + ROWS)
        for at in range(used, num_tokens, BLOCK):
            inside = at + n < num_tokens
            zero = tl.zeros([BLOCK], tl.int64)
            tl.store(input_ids_ptr + at + n, zero, mask=inside)
            tl.store(positions_ptr + at + n, zero, mask=inside)
            tl.store(slots_ptr + at + n, zero - 1, mask=inside)


def prepare_mixed_reference(
    packed: torch.Tensor,
    rows: int,
    token_ids: torch.Tensor,
    block_table: torch.Tensor,
    block_size: int,
    input_ids: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    seq_lens: torch.Tensor,
    decode_lens: torch.Tensor,
    out_table: torch.Tensor,
) -> None:
    """The specification of prepare_mixed."""
    row, computed, starts = packed[:rows].tolist(), packed[rows : 2 * rows].tolist(), packed[2 * rows :].tolist()
    num_decodes = starts[rows + 1]
    input_ids.zero_()
    positions.zero_()
    slots.fill_(-1)
    seq_lens.zero_()
    decode_lens.zero_()
    for i in range(rows):
        if row[i] < 0:
            continue
        begin, end = starts[i], starts[i + 1]
        at = computed[i] + torch.arange(end - begin, device=input_ids.device)
        input_ids[begin:end] = token_ids[row[i], at].long()
        positions[begin:end] = at
        slots[begin:end] = block_table[row[i], at // block_size].long() * block_size + at % block_size
        length = computed[i] + end - begin
        seq_lens[i] = length
        decode_lens[i] = length if i < num_decodes else 0
        count = -(-length // block_size)
        out_table[i, :count] = block_table[row[i], :count]


def prepare_mixed(
    packed: torch.Tensor,
    rows: int,
    token_ids: torch.Tensor,
    block_table: torch.Tensor,
    block_size: int,
    input_ids: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    seq_lens: torch.Tensor,
    decode_lens: torch.Tensor,
    out_table: torch.Tensor,
) -> None:
    """Fill the inputs of a step in which requests bring any number of tokens.

    packed: int32, in this order: the requests' rows [rows] (-1: padding), their computed tokens [rows], the first token
    of each and the end of the last [rows + 1], the number of requests with one token [1], which come first. Written:
    input_ids, positions, slots int64 [T] (slot -1 behind the last token), seq_lens int32 [rows], decode_lens int32
    [rows] (0 but for the requests with one token), out_table int32 [rows, blocks].
    """
    launch(
        _prepare_mixed_kernel, (rows + 1,),
        packed, token_ids, block_table, input_ids, positions, slots, seq_lens, decode_lens, out_table,
        token_ids.stride(0), block_table.stride(0), out_table.stride(0), rows, input_ids.shape[0],
        BLOCK_SIZE=block_size, BLOCK=256, num_warps=2,
    )  # fmt: skip
