"""`use_beam_search`: bodies -> BeamSearchParams, and the one output of a prompt that is searched for."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from core.beam_search import MAX_BEAMS, BeamSearchParams
from core.outputs import RequestOutput
from core.sampling_params import SamplingParams
from server.errors import invalid
from server.openai.schema import SamplingBody
from server.state import ServerState

_NOT_WITH_BEAMS: dict[str, Any] = {
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "repetition_penalty": 1,
    "logit_bias": {},
    "allowed_token_ids": None,
    "bad_words": [],
    "min_tokens": 0,
    "stop": [],
    "prompt_logprobs": None,
}
"""What would change the answers and does not reach beams -> the value that asks for nothing."""


def beam_params(body: SamplingBody, params: SamplingParams) -> BeamSearchParams | None:
    """None: the body wants no beams. What does not go together is refused by name."""
    if not body.use_beam_search:
        for name, unset in (("length_penalty", 1.0), ("early_stopping", False)):
            if getattr(body, name) not in (None, unset):
                raise invalid(name, f"{name} belongs to beam search; send use_beam_search: true with it")
        return None
    for name, off in _NOT_WITH_BEAMS.items():
        if getattr(body, name) not in (None, off):
            asked = "prompt_logprobs (echo with logprobs asks for it)" if name == "prompt_logprobs" else name
            raise invalid(name, f"{asked} has no effect on beam search; leave out one of the two")
    if params.guided_decoding is not None:
        raise invalid(
            "use_beam_search",
            "beam search takes no constraint on the output, whether of response_format, guided decoding or tools; "
            "leave out one of the two",
        )
    if params.num_sequences > MAX_BEAMS:
        name = "n" if params.best_of is None else "best_of"
        raise invalid(name, f"{name}={params.num_sequences} is more than the {MAX_BEAMS} beams that there may be")
    if body.stream:
        raise invalid("stream", "beam search cannot be streamed: which answers are the best is known at the end")
    return BeamSearchParams(
        beam_width=params.num_sequences,
        n=params.n,
        max_tokens=params.max_tokens,
        length_penalty=1.0 if body.length_penalty is None else body.length_penalty,
        early_stopping=False if body.early_stopping is None else body.early_stopping,
        ignore_eos=params.ignore_eos,
        stop_token_ids=params.stop_token_ids,
        logprobs=params.logprobs,
        skip_special_tokens=params.skip_special_tokens,
    )


async def search(
    state: ServerState, body: SamplingBody, id: str, token_ids: list[int], params: BeamSearchParams
) -> AsyncGenerator[RequestOutput, None]:
    """The output. Closing the generator aborts what is asked for at that time."""
    yield await state.engine.beam_search(
        token_ids, params, state.engine_id(id), priority=body.priority or 0, cache_salt=body.cache_salt or ""
    )
