"""Prefix hits: what is found is exactly the longest chain of equal blocks under the same salt."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from core.kv_cache.manager import BLOCKS_A_VISIT, BlockManager
from core.request import Request
from core.sampling_params import SamplingParams

BLOCK = 4


def request_of(tokens: list[int], salt: str = "") -> Request:
    return Request(
        handle=1,
        request_id="1",
        prompt_token_ids=np.array(tokens, np.int32),
        params=SamplingParams(),
        arrival_time_s=0.0,
        max_total_tokens=100,
        cache_salt=salt,
    )


def manager_of(num_rows: int = 2, num_blocks: int = 64) -> BlockManager:
    return BlockManager(num_rows=num_rows, num_blocks=num_blocks, block_size=BLOCK, prefix_caching=True)


TOKENS = st.lists(st.integers(0, 1), max_size=20)


@settings(max_examples=200, deadline=None)
@given(TOKENS, TOKENS, st.sampled_from(["", "a"]), st.sampled_from(["", "a"]))
def test_a_match_is_the_common_prefix_in_whole_blocks(one, two, salt, other_salt):
    manager = manager_of()
    held, asked = request_of(one, salt), request_of(two, other_salt)
    updates = manager.enter(0, [], manager.num_blocks_for(len(one)))
    assert updates.tolist() == [[0, i, b] for i, b in enumerate(manager.blocks_of[0])]
    manager.publish(0, held, held.prompt_token_ids, len(one))
    common = 0
    while common < min(len(one), len(two)) and one[common] == two[common]:
        common += 1
    want = min(common, max(0, len(two) - 1)) // BLOCK if salt == other_salt else 0
    assert manager.match(asked, asked.prompt_token_ids) == manager.blocks_of[0][:want]
    manager.leave(0)
    assert manager.pool.num_free == 64
    assert len(manager.match(asked, asked.prompt_token_ids)) == want, "free blocks stay findable"


def test_decodes_publish_some_blocks_at_a_time_and_the_chain_is_that_of_the_whole_text():
    num_blocks = 2 * BLOCKS_A_VISIT
    tokens = np.arange(num_blocks * BLOCK + 1, dtype=np.int32)
    rows = np.stack([tokens, tokens + 100])
    manager = manager_of()
    requests = [request_of(rows[i].tolist()) for i in range(2)]
    both = np.array([0, 1])
    for row in range(2):
        manager.enter(row, [], 1)
    for full in range(1, num_blocks + 1):
        manager.publish_due(both, requests, rows, np.full(2, full * BLOCK))
        # the rows' turns are one block apart
        findable = [max(0, (full + row) // BLOCKS_A_VISIT * BLOCKS_A_VISIT - row) for row in range(2)]
        assert [len(r.block_hashes) for r in requests] == findable
        if full < num_blocks:
            assert manager.extend_each(both)[:, 1].tolist() == [full, full]
    for row in range(2):
        manager.publish(row, requests[row], rows[row], num_blocks * BLOCK)
        fresh = request_of(rows[row].tolist())
        assert manager.match(fresh, fresh.prompt_token_ids) == manager.blocks_of[row]
        assert fresh.block_hashes == requests[row].block_hashes


def test_blocks_that_are_withdrawn_or_forgotten_are_not_found():
    for method in ("withdraw", "forget"):
        manager = manager_of()
        request = request_of(list(range(9)))
        manager.enter(0, [], 3)
        manager.publish(0, request, request.prompt_token_ids, 9)
        assert len(manager.match(request, request.prompt_token_ids)) == 2
        manager.withdraw(0) if method == "withdraw" else manager.forget()
        assert manager.match(request, request.prompt_token_ids) == []
        manager.publish(0, request, request.prompt_token_ids, 9)
        assert manager.match(request, request.prompt_token_ids) == [], "a running row publishes nothing old again"
