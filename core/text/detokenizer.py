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

    def feed(self, text: str) -> str:
        """-> what may be shown now; after a stop is found, `found` names it and nothing more comes."""
        text = self._held + text
        first: tuple[int, int, str] | None = None
        for stop in self.stops:
            at = text.find(stop)
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


class Detokenizer:
    """One sequence's text."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str], include_stop: bool, skip_special: bool) -> None:
        from tokenizers.decoders import DecodeStream

        self._backend = tokenizer.backend
        self._skip_special = skip_special
        self._stream = DecodeStream(skip_special_tokens=skip_special)
        self._stops = StopStrings(stops, include_stop) if stops else None
        self._pending: list[int] = []
        self.num_tokens = 0
        """Tokens fed until the stop string was complete."""

    @property
    def stopped_by(self) -> str | None:
        return self._stops.found if self._stops else None

    def feed(self, token_ids: Sequence[int]) -> str:
        """-> the text that these tokens complete; reading ends with the token that completes a stop string."""
        pieces = []
        for token in token_ids:
            self.num_tokens += 1
            piece = self._stream.step(self._backend, token)
            if piece is None:
                self._pending.append(token)
                continue
            self._pending.clear()
            if self._stops is not None:
                piece = self._stops.feed(piece)
            pieces.append(piece)
            if self.stopped_by is not None:
                break
        return "".join(pieces)

    def finish(self) -> str:
        """The output is over: bytes that never became a character come out as U+FFFD, held text as it is."""
        tail = self._backend.decode(self._pending, skip_special_tokens=self._skip_special) if self._pending else ""
        self._pending.clear()
        if self._stops is None:
            return str(tail)
        text = self._stops.feed(str(tail)) if tail else ""
        return text if self._stops.found is not None else text + self._stops.flush()
