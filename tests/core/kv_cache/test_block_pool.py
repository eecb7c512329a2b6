"""The block pool against the plainest model of it: an ordered list of free blocks and two dictionaries."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.kv_cache.block_pool import BlockPool

NUM_BLOCKS = 6
OPERATION = st.one_of(
    st.tuples(st.just("allocate"), st.integers(0, 4)),
    st.tuples(st.sampled_from(["acquire", "release", "withdraw"]), st.integers(0, NUM_BLOCKS - 1)),
    st.tuples(st.just("publish"), st.integers(0, NUM_BLOCKS - 1), st.integers(0, 4)),
    st.tuples(st.just("forget")),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(OPERATION, max_size=60))
def test_any_sequence_agrees_with_the_plain_model(operations):
    pool = BlockPool(NUM_BLOCKS)
    free = list(range(NUM_BLOCKS))
    references = [0] * NUM_BLOCKS
    content_of: dict[int, bytes] = {}
    for name, *arguments in operations:
        if name == "allocate":
            (count,) = arguments
            if count > len(free):
                with pytest.raises(AssertionError):
                    pool.allocate(count)
                continue
            assert pool.allocate(count) == free[:count]
            for block in free[:count]:
                references[block] = 1
                content_of.pop(block, None)
            del free[:count]
        elif name == "acquire":
            (block,) = arguments
            if references[block] == 0:
                free.remove(block)
            references[block] += 1
            pool.acquire(block)
        elif name == "release":
            (block,) = arguments
            if references[block] == 0:
                with pytest.raises(AssertionError):
                    pool.release(block)
                continue
            references[block] -= 1
            if references[block] == 0:
                free.insert(len(free) if block in content_of else 0, block)
            pool.release(block)
        elif name == "publish":
            block, number = arguments
            content = bytes([number])
            if references[block]:  # whoever publishes holds the block
                if block not in content_of and content not in content_of.values():
                    content_of[block] = content
                pool.publish(block, content)
        elif name == "withdraw":
            (block,) = arguments
            content_of.pop(block, None)
            pool.withdraw(block)
        else:
            content_of.clear()
            pool.forget()
        assert pool.references == references
        assert pool.num_free == len(free)
        for number in range(5):
            found = [b for b, c in content_of.items() if c == bytes([number])]
            assert pool.find(bytes([number])) == (found[0] if found else None)


def test_a_free_block_is_found_until_it_is_reused_and_the_oldest_goes_first():
    pool = BlockPool(3)
    first, second, third = pool.allocate(3)
    for block, content in ((first, b"1"), (second, b"2")):
        pool.publish(block, content)
    for block in (second, first, third):
        pool.release(block)
    assert pool.find(b"1") == first and pool.find(b"2") == second
    assert pool.allocate(2) == [third, second], "what nobody can find first, then what has been free for longest"
    assert pool.find(b"2") is None and pool.find(b"1") == first
    pool.acquire(first)
    assert pool.num_free == 0
