"""Token log probabilities in OpenAI's two shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from core.outputs import TokenLogprob
from server.openai.schema import ChatLogprobs, CompletionLogprobs, TokenLogprobs, TopLogprob


def finite(value: float) -> float:
    """JSON has no infinity; OpenAI writes -9999 for impossible tokens."""
    return max(value, -9999.0)


def chat_logprobs(positions: Sequence[list[TokenLogprob]] | None) -> ChatLogprobs | None:
    if positions is None:
        return None
    content = []
    for chosen, *top in positions:
        tops = [TopLogprob(t.decoded_token, finite(t.logprob), list(t.decoded_token.encode())) for t in top]
        text = chosen.decoded_token
        content.append(TokenLogprobs(text, finite(chosen.logprob), list(text.encode()), tops))
    return ChatLogprobs(content)


def completion_logprobs(
    positions: Sequence[list[TokenLogprob] | None] | None, offset: int, num_top: int
) -> CompletionLogprobs | None:
    if positions is None:
        return None
    result = CompletionLogprobs([], [], [], [] if num_top else None)
    for position in positions:
        if position is None:
            continue
        chosen, *top = position
        result.text_offset.append(offset)
        result.tokens.append(chosen.decoded_token)
        result.token_logprobs.append(finite(chosen.logprob))
        if result.top_logprobs is not None:
            result.top_logprobs.append({t.decoded_token: finite(t.logprob) for t in [*top, chosen]})
        offset += len(chosen.decoded_token)
    return result


def prompt_logprobs(positions: Sequence[list[TokenLogprob] | None] | None) -> Any:
    """vLLM's form: per prompt token a map from token id to its candidate."""
    if positions is None:
        return None
    return [
        None if p is None
        else {str(t.token_id): {"logprob": finite(t.logprob), "rank": t.rank, "decoded_token": t.decoded_token} for t in p}
        for p in positions
    ]
