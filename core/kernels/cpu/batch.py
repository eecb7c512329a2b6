"""The inputs of a step in which every request brings one token, made from its rows. See core/kernels/batch.py."""

from __future__ import annotations

import torch

from core.kernels.cpu.jit import Kernel, int32s, int64s, numbers, part


def _prepare_decodes(at, share, shares):  # type: ignore[no-untyped-def]
    """packed: int32 [2, most]; the other arrays of a step have `count` rows or more"""
    (
        packed_at, token_ids_at, table_at, input_ids_at, positions_at, slots_at, lengths_at, out_table_at,
        count, most, num_rows, width, blocks, block_size,
    ) = numbers(at, 14)  # fmt: skip
    packed, token_ids = int32s(packed_at, (2, most)), int32s(token_ids_at, (num_rows, width))
    table, out_table = int32s(table_at, (num_rows, blocks)), int32s(out_table_at, (count, blocks))
    input_ids, positions = int64s(input_ids_at, (count,)), int64s(positions_at, (count,))
    slots, lengths = int64s(slots_at, (count,)), int32s(lengths_at, (count,))
    for i in part(count, share, shares):
        row, place = packed[0, i], packed[1, i]
        input_ids[i], positions[i], lengths[i] = token_ids[row, place], place, place + 1
        last = place // block_size
        slots[i] = table[row, last] * block_size + place % block_size
        for j in range(last + 1):
            out_table[i, j] = table[row, j]


_kernel = Kernel(_prepare_decodes, "14q")


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
    """Fill the inputs of `len(input_ids)` requests. All contiguous, and as wide as each other's tables.

    packed: int32 [2, so many or more]: the request's row and its number of computed tokens; token_ids: int32
    [rows, length]; block_table: int32 [rows, blocks]. Written: input_ids, positions, slots int64 [n], seq_lens int32
    [n], out_table int32 [n, blocks] (as many entries as a request has blocks; the rest stays as it was).
    """
    _kernel(
        0,
        packed.data_ptr(), token_ids.data_ptr(), block_table.data_ptr(), input_ids.data_ptr(), positions.data_ptr(),
        slots.data_ptr(), seq_lens.data_ptr(), out_table.data_ptr(),
        len(input_ids), packed.shape[1], *token_ids.shape, block_table.shape[1], block_size,
    )  # fmt: skip
