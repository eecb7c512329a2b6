"""Token ids -> the bytes they stand for, for byte-level BPE and for sentencepiece vocabularies."""

from __future__ import annotations

import re
from functools import cache
from typing import Any


@cache
def byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes: character -> byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = {chr(b): b for b in printable}
    shifted = (b for b in range(256) if b not in set(printable))
    alphabet.update({chr(256 + i): b for i, b in enumerate(shifted)})
    return alphabet


def token_bytes(backend: Any, special_ids: frozenset[int], vocab_size: int) -> list[bytes]:
    """The bytes that each token id stands for; b'' for special tokens and for ids that no token has."""
    vocabulary = backend.get_vocab(with_added_tokens=True)
    added = {i: t.content for i, t in backend.get_added_tokens_decoder().items()}
    alphabet = byte_level_alphabet()
    byte_level = all(c in alphabet for text in list(vocabulary)[:2000] if text not in added.values() for c in text)
    result = [b""] * vocab_size
    for text, index in vocabulary.items():
        if index in special_ids or index >= vocab_size:
            continue
        if index in added:
            result[index] = added[index].encode()
        elif byte_level:
            result[index] = bytes(alphabet[c] if c in alphabet else ord("?") for c in text)
        elif match := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", text):
            result[index] = bytes([int(match[1], 16)])
        else:
            result[index] = text.replace("\u2581", " ").encode()
    return result
