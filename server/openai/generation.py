"""What the engine makes of one prompt: asked for, waited for, and held to have ended well."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from core.engine.news import Outlet
from core.engine.output_processor import OutputKind
from core.errors import RequestAbortedError
from core.outputs import CompletionOutput, RequestOutput
from core.sampling_params import SamplingParams
from server.errors import ApiError
from server.openai.beams import beam_params, search
from server.openai.schema import SamplingBody
from server.state import ServerState


def generate(
    state: ServerState,
    body: SamplingBody,
    id: str,
    token_ids: list[int],
    params: SamplingParams,
    output_kind: OutputKind,
    outlet: Outlet | None = None,
) -> AsyncGenerator[RequestOutput, None]:
    """Outputs for one prompt. Closing the generator aborts the request."""
    beams = beam_params(body, params)
    if beams is not None:
        return search(state, body, id, token_ids, beams)
    source: Any = state.engine.generate(
        token_ids,
        params,
        state.engine_id(id),
        priority=body.priority or 0,
        cache_salt=body.cache_salt or "",
        output_kind=output_kind,
        outlet=outlet,
    )
    return source  # type: ignore[no-any-return]


async def final_output(state: ServerState, source: AsyncGenerator[RequestOutput, None]) -> RequestOutput:
    """Every answer, whole. Raises what the engine refuses the request with."""
    final: RequestOutput | None = None
    try:
        with state.working():
            async for output in source:
                final = output
    finally:
        await source.aclose()
    if final is None:
        raise RequestAbortedError("the engine gave no answer")
    return final


def check_end(output: CompletionOutput, params: SamplingParams) -> None:
    """An answer that ended badly is no answer."""
    if output.finish_reason == "error":
        bad_request = params.guided_decoding is not None
        raise ApiError(
            output.error or "the engine could not finish this request",
            status=400 if bad_request else 500,
            code="generation_failed",
        )
    if output.finish_reason == "abort":
        raise RequestAbortedError("the request was aborted before it was done; the server may be stopping")
