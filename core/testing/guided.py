"""check_guided_backend: strings that a constraint accepts and refuses, through masks, matchers and rollback."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from core.errors import RequestError
from core.interfaces.guided import BatchFill, Grammar, GuidedBackend, Matcher, Vocabulary
from core.sampling_params import GuidedDecodingParams

EOS = 0
PIECES = ("ab", "abc", '"a', '":', "true", "null", "the ", "12", "é", "日本", "\n\n", "ye", "yes")
"""Tokens of several bytes beside the single ones, so that one string has several tokenizations."""


@dataclass(frozen=True, slots=True)
class GuidedCase:
    """A constraint, strings it accepts as a whole, and strings it does not."""

    constraint: GuidedDecodingParams
    accepted: Sequence[str] = ()
    rejected: Sequence[str] = ()


def byte_vocabulary() -> Vocabulary:
    """EOS, every byte, some longer tokens, one special token; the logits have 13 columns more."""
    tokens = [b"", *(bytes([b]) for b in range(256)), *(p.encode() for p in PIECES), b""]
    return Vocabulary(tokens, (EOS,), len(tokens) + 13, None)


def check_guided_backend(
    backend: Callable[[Vocabulary], GuidedBackend],
    cases: Iterable[GuidedCase],
    *,
    unsupported: Iterable[GuidedDecodingParams] = (),
    vocabulary: Vocabulary | None = None,
) -> None:
    """Raise AssertionError unless the backend's masks and matchers allow the accepted strings, and no rejected one.

    Each accepted string is walked in its single bytes and in its longest tokens: at every token the mask has its bit
    and the matcher takes it; at the end EOS is allowed. Masks are filled over poison, must be the same from `fill`
    and `fill_many`, after a rollback, and in a second matcher of the grammar; forced tokens must be allowed ones. A
    rejected string must meet a token, or EOS, that the mask and the matcher both refuse. Constraints in
    `unsupported` must be named by unsupported(), or refused by compile(), never taken.
    """
    words = vocabulary or byte_vocabulary()
    made = backend(words)
    checked = 0
    try:
        for case in cases:
            _Walk(made, words, case).check()
            checked += 1
        for constraint in unsupported:
            _refuses(made, constraint)
            checked += 1
    finally:
        # backends with processes of their own have it
        getattr(made, "close", lambda: None)()
    assert checked, f"{made.name}: no cases were given, nothing was checked"


def _named(constraint: GuidedDecodingParams) -> str:
    """Only what is set."""
    given = {name: getattr(constraint, name) for name in constraint.__struct_fields__}
    return ", ".join(f"{name}={value!r}" for name, value in given.items() if value not in (None, False))


def _refuses(backend: GuidedBackend, constraint: GuidedDecodingParams) -> None:
    if backend.unsupported(constraint):
        return
    try:
        backend.compile(constraint)
    except RequestError:
        return
    except Exception as error:
        raise AssertionError(
            f"{backend.name}: {_named(constraint)} raises {type(error).__name__}: {error}; a constraint that it cannot hold "
            "is named by unsupported(), or compile() raises RequestError"
        ) from error
    raise AssertionError(
        f"{backend.name}: {_named(constraint)} was taken; it must be named by unsupported() or refused"
    )


class _Walk:
    """One constraint's grammar, walked by strings."""

    def __init__(self, backend: GuidedBackend, vocabulary: Vocabulary, case: GuidedCase) -> None:
        self.backend, self.vocabulary, self.case = backend, vocabulary, case
        self.where = f"{backend.name}: {_named(case.constraint)}"
        named = backend.unsupported(case.constraint)
        assert not named, f"{self.where}: unsupported() names {named}"
        self.grammar: Grammar = backend.compile(case.constraint)
        self.num_words = -(-vocabulary.size // 32)
        self.ids = {t: i for i, t in enumerate(vocabulary.tokens) if t}
        self.longest = max(map(len, self.ids))
        self.eos = vocabulary.eos_token_ids[0]

    def check(self) -> None:
        assert self.case.accepted or self.case.rejected, f"{self.where}: no strings were given"
        for text in self.case.accepted:
            for longest in dict.fromkeys((1, self.longest)):
                self._accepts(text, self._tokens(text, longest))
        for text in self.case.rejected:
            for longest in dict.fromkeys((1, self.longest)):
                self._rejects(text, self._tokens(text, longest))

    def _tokens(self, text: str, longest: int) -> list[int]:
        """Greedy, tokens of at most `longest` bytes."""
        data, ids, at = text.encode(), [], 0
        while at < len(data):
            size = next((n for n in range(min(longest, len(data) - at), 0, -1) if data[at : at + n] in self.ids), 0)
            assert size, f"the vocabulary has no token for byte {data[at]} of {text!r}; give one that has every byte"
            ids.append(self.ids[data[at : at + size]])
            at += size
        return ids

    def _mask(self, matcher: Matcher, where: str) -> np.ndarray:
        """bool [size], filled over ones and over zeros."""
        rows = [np.full(self.num_words, poison, np.int32) for poison in (-1, 0)]
        for row in rows:
            matcher.fill(row)
        if isinstance(self.backend, BatchFill):
            bits = np.full((3, self.num_words), 0x5A5A5A5A, np.int32)
            self.backend.fill_many([(matcher, 1)], bits)
            rows.append(bits[1])
            assert (bits[[0, 2]] == 0x5A5A5A5A).all(), f"{where}: fill_many wrote rows that it was not given"
        masks = [np.unpackbits(row.view(np.uint8), bitorder="little")[: self.vocabulary.size] for row in rows]
        assert (masks[0] == masks[1]).all(), f"{where}: fill() leaves bits as they were; it must overwrite the row"
        assert (masks[0] == masks[-1]).all(), f"{where}: fill_many() and fill() differ"
        padding = masks[0][len(self.vocabulary.tokens) :]
        assert not padding.any(), f"{where}: the mask allows columns that are no token"
        return masks[0].astype(bool)

    def _accepts(self, text: str, tokens: list[int]) -> None:
        matcher, second = self.grammar.matcher(), self.grammar.matcher()
        begun = self._mask(second, f"{self.where}, at its beginning")
        masks: list[np.ndarray] = []
        for i, token in enumerate([*tokens, self.eos]):
            piece = "EOS" if token == self.eos else repr(self.vocabulary.tokens[token])
            so_far = b"".join(self.vocabulary.tokens[t] for t in tokens[:i])
            where = f"{self.where}, accepted string {text!r}, after {so_far!r}"
            masks.append(self._mask(matcher, where))
            assert masks[-1][token], f"{where}: the mask does not allow {piece}"
            self._check_forced(matcher, masks[-1], where)
            assert not (token != self.eos and matcher.finished()), f"{where}: finished() before {piece}"
            assert matcher.accept(token), f"{where}: accept({piece}) is False, and the mask allows it"
            assert matcher.error() is None, f"{where}: error() is {matcher.error()!r} after {piece}"
        # back by one, by two, and by all the rest
        at = len(masks)
        for back in (1, 2, len(masks)):
            back = min(back, at)
            if back:
                matcher.rollback(back)
                at -= back
                where = f"{self.where}, accepted string {text!r}, rolled back to {at} of {len(masks)} tokens"
                assert (self._mask(matcher, where) == masks[at]).all(), f"{where}: the mask is not what it was there"
        for token in [*tokens, self.eos]:
            assert matcher.accept(token), f"{self.where}: {text!r} is not accepted a second time, after rollback"
        assert (self._mask(second, f"{self.where}, second matcher") == begun).all(), (
            f"{self.where}: a matcher moved when another of the same grammar did"
        )

    def _check_forced(self, matcher: Matcher, mask: np.ndarray, where: str) -> None:
        forced = list(matcher.forced())
        if forced:
            assert mask[forced[0]], f"{where}: forced() begins with token {forced[0]}, which the mask does not allow"
            for n, token in enumerate(forced):
                assert matcher.accept(token), f"{where}: forced() gives {forced}, and accept refuses its item {n}"
            matcher.rollback(len(forced))
            again = self._mask(matcher, where)
            assert (again == mask).all(), f"{where}: forced tokens were taken and rolled back; the mask is another"

    def _rejects(self, text: str, tokens: list[int]) -> None:
        matcher = self.grammar.matcher()
        for i, token in enumerate([*tokens, self.eos]):
            where = f"{self.where}, rejected string {text!r}, token {i} of {len(tokens)}"
            allowed = bool(self._mask(matcher, where)[token])
            taken = bool(matcher.accept(token))
            assert allowed == taken, (
                f"{where}: the mask {'allows' if allowed else 'refuses'} it and accept() "
                f"{'takes' if taken else 'refuses'} it"
            )
            if not taken:
                return
        raise AssertionError(f"{self.where}: {text!r} is accepted, and must not be")
