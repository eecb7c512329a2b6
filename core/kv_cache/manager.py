"""Which blocks each row holds, and which of them others may find. Knows nothing of steps or policy.

Block updates are int32 [k, 3] arrays of (row, index in the row's table, block), as StepPlan carries them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from core.kv_cache.block_pool import BlockPool
from core.kv_cache.prefix import extend_hashes
from core.request import Request

BLOCKS_A_VISIT = 8
"""A decoding row's new blocks become findable this many at a time, and all of them when it leaves: before that hardly
anyone can ask for them, and one visit for eight costs the steps half of eight visits."""


class BlockManager:
    """Blocks of rows: given, shared by prefix, published as they fill, and given back."""

    def __init__(self, *, num_rows: int, num_blocks: int, block_size: int, prefix_caching: bool) -> None:
        self.pool = BlockPool(num_blocks)
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        self.blocks_of: list[list[int]] = [[] for _ in range(num_rows)]
        self.capacity = np.zeros(num_rows, np.int32)
        """Tokens that a row's blocks hold."""
        self._published = np.zeros(num_rows, np.int32)  # a row's first blocks that need no publishing any more

    def num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def num_common_blocks(self, rows: Sequence[int]) -> int:
        """How many first blocks all of these rows share, if they are all the rows that hold any."""
        references, count = self.pool.references, 0
        # a block stands at one place in a table, so as many holders as rows means all of them
        for block in self.blocks_of[rows[0]]:
            if references[block] < len(rows):
                break
            count += 1
        return count

    def match(self, request: Request, tokens: np.ndarray) -> list[int]:
        """The longest cached prefix of `tokens` in whole blocks, the last token left out. Changes no block."""
        # the last token is always computed: its logits are wanted
        extend_hashes(request.block_hashes, tokens, len(tokens), self.block_size, request.cache_salt)
        blocks = []
        for content in request.block_hashes[: (len(tokens) - 1) // self.block_size]:
            block = self.pool.find(content)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def enter(self, row: int, shared: Sequence[int], num_blocks: int) -> np.ndarray:
        """Give an empty row the `shared` blocks and `num_blocks` new ones."""
        for block in shared:
            self.pool.acquire(block)
        blocks = [*shared, *self.pool.allocate(num_blocks)]
        self.blocks_of[row] = blocks
        self.capacity[row] = len(blocks) * self.block_size
        self._published[row] = len(shared)
        return _updates(row, 0, blocks)

    def extend(self, row: int, num_blocks: int) -> np.ndarray:
        blocks = self.blocks_of[row]
        new = self.pool.allocate(num_blocks)
        updates = _updates(row, len(blocks), new)
        blocks += new
        self.capacity[row] += num_blocks * self.block_size
        return updates

    def extend_each(self, rows: np.ndarray) -> np.ndarray:
        """One new block for every row: what a step of decodes needs."""
        new = self.pool.allocate(len(rows))
        updates = np.empty((len(rows), 3), np.int32)
        updates[:, 0], updates[:, 1], updates[:, 2] = rows, self.capacity[rows] // self.block_size, new
        for row, block in zip(rows.tolist(), new, strict=True):
            self.blocks_of[row].append(block)
        self.capacity[rows] += self.block_size
        return updates

    def leave(self, row: int) -> None:
        for block in reversed(self.blocks_of[row]):  # the end of a prompt is reused before its beginning
            self.pool.release(block)
        self.blocks_of[row] = []
        self.capacity[row] = 0

    def publish(self, row: int, request: Request, token_ids: np.ndarray, num_tokens: int) -> None:
        """Make the row's full blocks within `num_tokens` findable."""
        num_full = num_tokens // self.block_size
        begin = int(self._published[row])
        if not self.prefix_caching or num_full <= begin:
            return
        hashes, blocks = request.block_hashes, self.blocks_of[row]
        extend_hashes(hashes, token_ids, num_full * self.block_size, self.block_size, request.cache_salt)
        for block, content in zip(blocks[begin:num_full], hashes[begin:num_full], strict=True):
            self.pool.publish(block, content)
        self._published[row] = num_full

    def publish_due(
        self, rows: np.ndarray, requests: Sequence[Request | None], token_ids: np.ndarray, num_tokens: np.ndarray
    ) -> None:
        """`publish` for those of many decoding rows that have filled some blocks since. token_ids: all rows'."""
        if not self.prefix_caching:
            return
        # rows take turns, so that many that began together do not fall due together
        due = (num_tokens // self.block_size + rows) % BLOCKS_A_VISIT == 0
        if not due.any():
            return
        for row, num in zip(rows[due].tolist(), num_tokens[due].tolist(), strict=True):
            request = requests[row]
            assert request is not None
            self.publish(row, request, token_ids[row], num)

    def withdraw(self, row: int) -> None:
        """Nobody may find the row's blocks any more: what they hold is not to be trusted."""
        for block in self.blocks_of[row]:
            self.pool.withdraw(block)
        self._published[row] = len(self.blocks_of[row])

    def forget(self) -> None:
        """Empty the prefix cache. Running rows publish nothing old again."""
        self.pool.forget()
        self._published[:] = [len(blocks) for blocks in self.blocks_of]


def _updates(row: int, index: int, blocks: Sequence[int]) -> np.ndarray:
    updates = np.empty((len(blocks), 3), np.int32)
    updates[:, 0], updates[:, 1], updates[:, 2] = row, np.arange(index, index + len(blocks)), blocks
    return updates
