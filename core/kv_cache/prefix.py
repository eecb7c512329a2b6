"""What a block holds, as a chained hash: the parent block's hash, this block's tokens, and a tenant's salt.

128 bits of blake2b: two different prompts do not meet.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np


def root_hash(salt: str) -> bytes:
    """The parent of a prompt's first block."""
    return blake2b(salt.encode(), digest_size=16).digest()


def extend_hashes(hashes: list[bytes], token_ids: np.ndarray, num_tokens: int, block_size: int, salt: str) -> None:
    """Append the hashes of all full blocks within the first `num_tokens` of `token_ids` (int32)."""
    parent = hashes[-1] if hashes else root_hash(salt)
    begin, end = len(hashes) * block_size, num_tokens // block_size * block_size
    data, size = token_ids[begin:end].tobytes(), block_size * token_ids.itemsize
    for i in range(0, len(data), size):
        parent = blake2b(parent + data[i : i + size], digest_size=16).digest()
        hashes.append(parent)
