"""The contract of a guided-decoding backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from core.sampling_params import GuidedDecodingParams


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a backend must know of the tokenizer."""

    tokens: Sequence[bytes]
    """Bytes of every token id; special tokens are empty"""
    eos_token_ids: tuple[int, ...]
    size: int
    """Columns of the logits, which may be more than tokens"""
    tokenizer_file: str | None
    """tokenizer.json, for backends that read it themselves"""


class Matcher(Protocol):
    """One sequence's place in a grammar."""

    def fill(self, bitmask_row: np.ndarray) -> None:
        """Set the bits of allowed tokens; int32 [ceil(vocab / 32)], fully overwritten."""

    def accept(self, token_id: int) -> bool:
        """Advance; False if the grammar does not allow the token."""

    def rollback(self, num_tokens: int) -> None: ...

    def forced(self) -> list[int]:
        """Tokens that follow without choice; may be empty."""

    def finished(self) -> bool:
        """The document is complete and nothing may follow."""


class Grammar(Protocol):
    def matcher(self) -> Matcher: ...


class GuidedBackend(Protocol):
    name: str

    def __init__(self, vocabulary: Vocabulary) -> None: ...

    def unsupported(self, constraint: GuidedDecodingParams) -> list[str]:
        """Keywords it cannot hold, by name."""

    def compile(self, constraint: GuidedDecodingParams) -> Grammar:
        """Off the step path. Raises RequestError."""
