"""The torch backend against the float32 reference, on mixed steps over scattered blocks; and what stale blocks may not do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from core.batch import AttentionMetadata, ForwardBatch
from core.interfaces.attention import AttentionSpec
from plugins.attention.torch.backend import TorchBackend
from plugins.attention.torch.reference import paged_attention_reference

BLOCK_SIZE = 16
CPU = torch.device("cpu")


def make_batch(query_lens: list[int], seq_lens: list[int], tables: list[list[int]]) -> ForwardBatch:
    queries, lengths = np.array(query_lens, np.int32), np.array(seq_lens, np.int32)
    table = torch.zeros(len(tables), max(map(len, tables)), dtype=torch.int32)
    for i, blocks in enumerate(tables):
        table[i, : len(blocks)] = torch.tensor(blocks, dtype=torch.int32)
    places = [(i, p) for i in range(len(tables)) for p in range(seq_lens[i] - query_lens[i], seq_lens[i])]
    slots = torch.tensor([tables[i][p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for i, p in places])
    positions = torch.tensor([p for _, p in places])
    attention = AttentionMetadata(
        query_start_loc=torch.tensor([0, *queries.cumsum().tolist()], dtype=torch.int32),
        seq_lens=torch.from_numpy(lengths),
        block_table=table,
        slot_mapping=slots,
        num_requests=len(tables),
        num_decodes=int((queries == 1).sum()),
        num_tokens=len(places),
        max_query_len=int(queries.max()),
        max_seq_len=int(lengths.max()),
        query_lens_host=queries,
        seq_lens_host=lengths,
        block_size=BLOCK_SIZE,
    )
    return ForwardBatch(positions, positions, attention, [])


def scattered(seq_lens: list[int], seed: int = 0) -> tuple[list[list[int]], int]:
    counts = [-(-n // BLOCK_SIZE) for n in seq_lens]
    order = np.random.default_rng(seed).permutation(sum(counts)).tolist()
    return [[order.pop() for _ in range(count)] for count in counts], sum(counts)


STEPS = {
    "one decode": ([1], [63]),
    "first token": ([1], [1]),
    "decodes of many lengths": ([1] * 7, [1, 16, 17, 63, 64, 500, 33]),
    "prefills": ([63, 5, 40], [63, 5, 40]),
    "chunks": ([7, 33], [63, 500]),
    "mixed": ([1, 1, 1, 30, 63], [500, 2, 49, 70, 63]),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("heads", [(4, 4), (8, 2), (3, 1)], ids=str)
@pytest.mark.parametrize("options", [{}, {"window": 20}, {"soft_cap": 5.0}], ids=["plain", "window", "soft cap"])
def test_a_step_equals_the_reference(step, heads, options):
    torch.manual_seed(0)
    query_lens, seq_lens = STEPS[step]
    tables, num_blocks = scattered(seq_lens)
    spec = AttentionSpec(*heads, 32, 32**-0.5, **options)
    backend = TorchBackend(CPU)
    keys, values = cache = backend.allocate(spec, num_blocks, BLOCK_SIZE, torch.float32)
    keys.normal_()
    values.normal_()
    batch = make_batch(query_lens, seq_lens, tables)
    tokens = sum(query_lens)
    query = torch.randn(tokens, heads[0], 32)
    key, value = torch.randn(tokens, heads[1], 32), torch.randn(tokens, heads[1], 32)
    backend.plan(batch)
    out = backend.forward(spec, query, key, value, cache, batch)
    torch.testing.assert_close(out, paged_attention_reference(spec, query, keys, values, batch), atol=2e-5, rtol=1e-4)


def test_what_a_broken_sequence_left_in_its_blocks_spoils_no_other():
    torch.manual_seed(0)
    spec = AttentionSpec(4, 2, 16, 0.25)
    backend = TorchBackend(CPU)
    keys, values = cache = backend.allocate(spec, 8, BLOCK_SIZE, torch.float32)
    keys.fill_(float("nan"))
    values.fill_(float("nan"))

    def step(query_lens: list[int], seq_lens: list[int], tables: list[list[int]]) -> torch.Tensor:
        batch = make_batch(query_lens, seq_lens, tables)
        backend.plan(batch)
        tokens = sum(query_lens)
        new = torch.randn(tokens, 2, 16), torch.randn(tokens, 2, 16)
        return backend.forward(spec, torch.randn(tokens, 4, 16), *new, cache, batch)

    tables = [[6, 3], [1]]
    assert step([14, 3], [14, 3], tables).isfinite().all()
    for i in range(1, 8):  # over the edge of a block, beside a shorter one
        assert step([1, 1], [14 + i, 3 + i], tables).isfinite().all()
