"""Token ids -> text, a few at a time: no character is split, stop strings are held back until they cannot be one."""

from __future__ import annotations

from collections.abc import Sequence

from core.text.tokenizer import Tokenizer


class StopStrings:
    """Finds the first stop string in a growing text and keeps back what may become one."""

    def __init__(self, stops: Sequence[str], include: bool) -> None:
        self.stops, self.include = tuple(stops), include
        self.found: str | None = None
        self._held = ""
        self._longest = max(map(len, self.stops), default=0)

    def feed(self, text: str, may_end: bool = True) -> str:
        """-> what may be shown now; after a stop is found, `found` names it and nothing more comes.

        Without `may_end` no stop that ends within `text` counts.
        """
        begin = len(self._held)
        text = self._held + text
        first: tuple[int, int, str] | None = None
        for stop in self.stops if may_end else ():
            at = text.find(stop, max(0, begin + 1 - len(stop)))
            # the match that ends first is the one that would have stopped a token earlier
            if at >= 0 and (first is None or (at + len(stop), at) < first[:2]):
                first = (at + len(stop), at, stop)
        if first is not None:
            end, at, self.found = first
            self._held = ""
            return text[:end] if self.include else text[:at]
        keep = 0
        for size in range(min(self._longest - 1, len(text)), 0, -1):
            tail = text[-size:]
            if any(stop.startswith(tail) for stop in self.stops):
                keep = size
                break
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held


MAX_PENDING = 16
"""Tokens that may wait for the rest of a character, which has four bytes at most. What waits is decoded anew for every
token, so bytes that never become a character must not gather."""


class Detokenizer:
    """One sequence's text."""

    def __init__(
        self, tokenizer: Tokenizer, stops: Sequence[str], include_stop: bool, skip_special: bool, min_tokens: int = 0
    ) -> None:
        """`min_tokens`: a stop string that the first so many tokens complete is text like any other."""
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._skipped = tokenizer.special_ids if skip_special else frozenset[int]()
        self._min_tokens = min_tokens
        self._stops = StopStrings(stops, include_stop) if stops else None
        self._pending: list[int] = []
        self._begin()
        self.num_tokens = 0
        """Tokens fed until the stop string was complete."""

    @property
    def stopped_by(self) -> str | None:
        return self._stops.found if self._stops else None

    def feed(self, token_ids: Sequence[int]) -> str:
        """-> the text that these tokens complete; reading ends with the token that completes a stop string."""
        pieces = []
        for token in token_ids:
            pieces.append(self.feed_one(token))
            if self.stopped_by is not None:
                break
        return "".join(pieces)

    def feed_one(self, token: int) -> str:
        """`feed` of one token, which is what a stream gets."""
        self.num_tokens += 1
        if token in self._skipped:
            return ""
        piece = self._step(token)
        if piece and self._stops is not None:
            return self._stops.feed(piece, self.num_tokens > self._min_tokens)
        return piece

    def finish(self) -> str:
        """The output is over: bytes that never became a character come out as U+FFFD, held text as it is."""
        tail = self._flush() if self._pending else ""
        if self._stops is None:
            return tail
        text = self._stops.feed(tail, self.num_tokens > self._min_tokens) if tail else ""
        return text if self._stops.found is not None else text + self._stops.flush()

    def _begin(self) -> None:
        from tokenizers.decoders import DecodeStream

        ids = list(self._tokenizer.before_output)
        self._stream = DecodeStream(ids=ids, skip_special_tokens=self._skip_special)

    def _step(self, token: int) -> str:
        try:
            piece: str | None = self._stream.step(self._tokenizer.backend, token)
        except Exception:
            # tokenizers raises bare Exception where text that it gave already would change: with byte fallback a run of
            # bytes is one character after the other until it goes wrong, and then none
            self._pending.append(token)
            return self._flush()
        if piece is None:
            self._pending.append(token)
            return self._flush() if len(self._pending) >= MAX_PENDING else ""
        if self._pending:
            self._pending.clear()
        return piece

    def _flush(self) -> str:
        """What waits, as it is; and a new beginning."""
        text = self._tokenizer.decode_output(self._pending, self._skip_special)
        self._pending.clear()
        self._begin()
        return text


def output_text(tokenizer: Tokenizer, token_ids: Sequence[int], skip_special: bool) -> str:
    """The text of a whole output, the same as piece by piece."""
    text = tokenizer.decode_output(token_ids, skip_special)
    if "\ufffd" not in text:
        return text
    # bytes that are no character: how many signs stand for them depends on where the pieces end
    pieces = Detokenizer(tokenizer, (), False, skip_special)
    return pieces.feed(token_ids) + pieces.finish()
