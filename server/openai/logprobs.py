"""Log probabilities in OpenAI's two shapes, chat and completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from core.outputs import TokenLogprob
from server.errors import finite
from server.state import ServerState


def _likeliest(candidates: Sequence[TokenLogprob], k: int) -> list[TokenLogprob]:
    # the chosen token comes first and may come again among the likeliest
    unique = {c.token_id: c for c in candidates}.values()
    return sorted((c for c in unique if c.rank <= k), key=lambda c: c.rank)[:k]


def _name(candidate: TokenLogprob, as_ids: bool) -> str:
    return f"token_id:{candidate.token_id}" if as_ids else candidate.decoded_token


def chat(
    state: ServerState, positions: Sequence[Sequence[TokenLogprob]] | None, top: int, *, as_ids: bool = False
) -> dict[str, Any] | None:
    if positions is None:
        return None

    def entry(c: TokenLogprob) -> dict[str, Any]:
        return {
            "token": _name(c, as_ids),
            "logprob": finite(c.logprob),
            "bytes": state.token_bytes(c.token_id, c.decoded_token),
        }

    return {
        "content": [{**entry(p[0]), "top_logprobs": [entry(c) for c in _likeliest(p, top)]} for p in positions if p]
    }


class TextLogprobs:
    """Completions' shape, whose offsets go on from piece to piece."""

    def __init__(self, top: int, *, as_ids: bool = False) -> None:
        self._top, self._as_ids = top, as_ids
        self._offset = 0

    def take(self, positions: Sequence[Sequence[TokenLogprob] | None]) -> dict[str, Any]:
        tokens: list[str] = []
        values: list[float | None] = []
        tops: list[dict[str, float] | None] = []
        offsets: list[int] = []
        for p in positions:
            if not p:
                continue
            chosen = p[0]
            tokens.append(_name(chosen, self._as_ids))
            values.append(finite(chosen.logprob))
            best = {_name(c, self._as_ids): finite(c.logprob) for c in _likeliest(p, self._top)}
            best.setdefault(_name(chosen, self._as_ids), finite(chosen.logprob))
            tops.append(best)
            offsets.append(self._offset)
            self._offset += len(chosen.decoded_token)
        return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}

    def first(self, text: str, token_id: int) -> dict[str, Any]:
        """The prompt's first token: nothing comes before it, so it has no probability."""
        offset, self._offset = self._offset, self._offset + len(text)
        name = f"token_id:{token_id}" if self._as_ids else text
        return {"tokens": [name], "token_logprobs": [None], "top_logprobs": [None], "text_offset": [offset]}


def joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {k: [v for part in parts for v in part[k]] for k in parts[0]} if parts else {}


def prompt(
    positions: Sequence[Sequence[TokenLogprob] | None] | None,
) -> list[dict[str, dict[str, Any]] | None] | None:
    """vLLM's prompt_logprobs: per position token id -> {logprob, rank, decoded_token}."""
    if positions is None:
        return None
    return [
        {str(c.token_id): {"logprob": finite(c.logprob), "rank": c.rank, "decoded_token": c.decoded_token} for c in p}
        if p
        else None
        for p in positions
    ]
