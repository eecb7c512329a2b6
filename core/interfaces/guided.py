"""The contract of a guided-decoding backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from core.errors import RequestError
from core.sampling_params import GuidedDecodingParams


class UnsupportedConstraintError(RequestError):
    """This backend cannot hold the constraint; another may. Any other RequestError is final."""


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

    def rollback(self, num_tokens: int) -> None:
        """Take back the last `num_tokens` accepted tokens."""

    def forced(self) -> list[int]:
        """Tokens that follow without choice; may be empty."""

    def finished(self) -> bool:
        """The document is complete and nothing may follow."""

    def error(self) -> str | None:
        """What went wrong inside (a limit was hit); the sequence cannot go on."""


class Grammar(Protocol):
    """A compiled constraint, shared by all requests that bring it."""

    def matcher(self) -> Matcher:
        """A new place at the grammar's beginning, for one sequence."""


class GuidedBackend(Protocol):
    """Made once per engine: when the first request needs it, or before, while an engine process is idle."""

    name: str

    def __init__(self, vocabulary: Vocabulary) -> None: ...

    def unsupported(self, constraint: GuidedDecodingParams) -> list[str]:
        """Keywords it cannot hold, by name."""

    def compile(self, constraint: GuidedDecodingParams) -> Grammar:
        """Off the step path, in a thread. Raises RequestError; UnsupportedConstraintError lets "auto" try the next."""


@runtime_checkable
class BatchFill(Protocol):
    """What a backend may offer besides: masks of many matchers in one call, on several threads."""

    def fill_many(self, matchers: Sequence[tuple[Matcher, int]], bits: np.ndarray) -> None:
        """For each (matcher, row) set the bits of allowed tokens in bits[row]; int32 [rows, ceil(vocab / 32)]."""
