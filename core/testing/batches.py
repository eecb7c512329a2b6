"""ForwardBatches made by hand: ragged requests over block tables that jump, as the runner would make them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from core.batch import AttentionMetadata, ForwardBatch

Step = list[tuple[int, int]]
"""(request, new tokens) of each request in a step; those with one new token come first."""


def forward_batch(
    new: Sequence[int],
    lengths: Sequence[int],
    block_table: torch.Tensor,
    block_size: int,
    *,
    input_ids: Sequence[int] | None = None,
    device: str | torch.device = "cpu",
    common_prefix: int = 0,
) -> ForwardBatch:
    """A step in which request i brings `new[i]` tokens and then has `lengths[i]`.

    Length 0 is a row that only fills a captured graph up: its token is written nowhere. `block_table`: int32
    [num_requests, max_blocks]. `common_prefix`: so many first tokens of every request lie in the same blocks.
    """
    counts, totals = np.array(new, np.int32), np.array(lengths, np.int32)
    slots, positions = [], []
    for i, (count, total) in enumerate(zip(counts.tolist(), totals.tolist(), strict=True)):
        if total == 0:
            slots.append(torch.full((count,), -1))
            positions.append(torch.zeros(count, dtype=torch.int64))
            continue
        at = torch.arange(total - count, total)
        slots.append(block_table[i].cpu()[at // block_size].long() * block_size + at % block_size)
        positions.append(at)
    attention = AttentionMetadata(
        query_start_loc=torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)).to(device),
        seq_lens=torch.from_numpy(totals.copy()).to(device),
        block_table=block_table.to(device),
        slot_mapping=torch.cat(slots).to(device),
        num_requests=len(counts),
        num_decodes=int(np.searchsorted(counts > 1, True)),
        num_tokens=int(counts.sum()),
        max_query_len=int(counts.max()),
        max_seq_len=int(totals.max()),
        query_lens_host=counts,
        seq_lens_host=totals,
        block_size=block_size,
        common_prefix=torch.tensor([common_prefix], dtype=torch.int32, device=device) if common_prefix else None,
    )
    ids = torch.tensor(input_ids or [0] * attention.num_tokens, device=device)
    return ForwardBatch(ids, torch.cat(positions).to(device), attention, [])


def scattered_table(lengths: Sequence[int], block_size: int, seed: int, common: int = 0) -> tuple[torch.Tensor, int]:
    """-> (block table, blocks in the pool). Blocks jump; entries behind a request's end are stale, they name blocks
    of others. The first block of the pool, the last and one more belong to nobody: a slot of -1 that is taken as an index
    is seen there. The first `common` tokens of all requests share their blocks."""
    rng = np.random.default_rng(seed)
    counts = [-(-n // block_size) for n in lengths]
    num_blocks = sum(counts) + 3
    order = (1 + rng.permutation(num_blocks - 2)).tolist()
    shared = [order.pop() for _ in range(common // block_size)]
    table = rng.integers(0, num_blocks, (len(counts), max(*counts, 1) + 2))
    for i, count in enumerate(counts):
        if count:
            table[i, :count] = [*shared, *(order.pop() for _ in range(count - len(shared)))]
    return torch.from_numpy(table.astype(np.int32)), num_blocks


def in_order(step: Step) -> Step:
    """Decodes first, as the scheduler plans a step."""
    return sorted(step, key=lambda part: part[1] > 1)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """torch on one thread: the kit's tensors are so small that more only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
