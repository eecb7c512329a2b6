"""POST /v1/embeddings: text, token ids, lists of either, or a chat, as vectors. The rule is the engine's `pooling_type`."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from typing import Any

import msgspec
from litestar import Response, post

from core.errors import RequestError
from core.outputs import EmbeddingRequestOutput
from server.errors import ApiError, encode, invalid, unsupported
from server.openai.answers import EmbeddingList
from server.openai.messages import template_messages
from server.openai.params import refuse_unknown
from server.openai.schema import EmbeddingsRequest, PoolingBody
from server.openapi import operation
from server.presence import unless_gone
from server.state import LONG_TEXT, HttpRequest, ServerState, read_body, request_id

_decoder = msgspec.json.Decoder(EmbeddingsRequest)
MAX_INPUTS = 2048
"""As OpenAI documents."""


def refuse(body: PoolingBody) -> None:
    if body.mm_processor_kwargs:
        raise unsupported("mm_processor_kwargs", "the models served here read text")
    if body.truncation_side not in (None, "left"):
        raise unsupported("truncation_side", "truncate_prompt_tokens keeps the last tokens; send 'left'")
    if body.truncate_prompt_tokens is not None and body.truncate_prompt_tokens < -1:
        raise invalid(
            "truncate_prompt_tokens",
            f"truncate_prompt_tokens={body.truncate_prompt_tokens} must be -1 (what the model takes) or more",
        )


def _refuse_embeddings(body: EmbeddingsRequest) -> None:
    refuse(body)
    if body.encoding_format not in (None, "float", "base64"):
        raise invalid("encoding_format", f"encoding_format={body.encoding_format!r} is not one of float, base64")
    if body.embed_dtype not in (None, "float32"):
        raise unsupported("embed_dtype", "vectors are float32; send that, or leave it out")
    if body.endianness not in (None, "native", "little"):
        raise unsupported("endianness", "bytes are little-endian; send 'little', or leave it out")
    if body.chat_template is not None:
        raise unsupported("chat_template", "templates from requests are not run; start with --chat-template")
    if (body.input is None) == (body.messages is None):
        raise ApiError("send either input or messages", param="input", code="missing_required_parameter")
    if body.messages is None:
        for name in ("add_generation_prompt", "continue_final_message", "chat_template_kwargs"):
            if getattr(body, name) is not None:
                raise invalid(name, f"{name} belongs to messages, and the body has input")


async def to_token_ids(
    state: ServerState, body: PoolingBody, given: Sequence[str | list[int]], places: Sequence[str], special: bool
) -> list[list[int]]:
    """Prompts as token ids, cut to truncate_prompt_tokens. `places` name them in errors."""
    texts = [g for g in given if isinstance(g, str)]
    tokenizer = state.engine.tokenizer
    if texts and tokenizer is None:
        raise ApiError("no tokenizer is loaded (skip_tokenizer_init); send token ids", param=places[0])
    if sum(map(len, texts)) < LONG_TEXT:
        encoded = tokenizer.encode_batch(texts, special) if texts else []
    else:
        encoded = await asyncio.to_thread(tokenizer.encode_batch, texts, special)
    found = iter(encoded)
    prompts = [list(next(found)) if isinstance(g, str) else g for g in given]
    vocab_size = state.engine.ready.vocab_size
    keep = body.truncate_prompt_tokens
    if keep == -1:
        keep = state.engine.ready.max_model_len
    for i, (prompt, place) in enumerate(zip(prompts, places, strict=True)):
        if not prompt:
            raise invalid(place, f"{place} is empty")
        if not isinstance(given[i], str):
            bad = next((t for t in prompt if not 0 <= t < vocab_size), None)
            if bad is not None:
                raise invalid(place, f"{place} has {bad}, which is not a token id; they go from 0 to {vocab_size - 1}")
        if keep is not None:
            if keep == 0:
                raise invalid("truncate_prompt_tokens", f"truncate_prompt_tokens=0 leaves nothing of {place}")
            prompts[i] = prompt[-keep:]
    return prompts


async def embed_all(
    state: ServerState,
    body: PoolingBody,
    id: str,
    prompts: Sequence[list[int]],
    places: Sequence[str],
    **options: Any,
) -> list[EmbeddingRequestOutput]:
    """The vectors of all prompts, in order. The first error ends the others."""

    async def one(i: int) -> EmbeddingRequestOutput:
        try:
            return await state.engine.embed(
                prompts[i],
                state.engine_id(f"{id}-{i}"),
                priority=body.priority or 0,
                cache_salt=body.cache_salt or "",
                **options,
            )
        except RequestError as error:
            if error.param == "prompt":
                error.param = places[i]
            raise

    with state.working():
        tasks = [asyncio.create_task(one(i)) for i in range(len(prompts))]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _split(given: Any) -> tuple[list[Any], list[str]]:
    """The inputs of a body, each with its place."""
    if isinstance(given, str):
        return [given], ["input"]
    if not given:
        raise invalid("input", "input is empty")
    kinds = {type(g) for g in given}
    if len(kinds) > 1:
        raise ApiError("input mixes text and token ids; send one kind", param="input", code="invalid_type")
    if kinds == {int}:
        return [given], ["input"]
    if len(given) > MAX_INPUTS:
        raise invalid("input", f"{len(given)} inputs are more than the {MAX_INPUTS} that one request may have")
    return list(given), [f"input[{i}]" for i in range(len(given))]


def _rendered(state: ServerState, body: EmbeddingsRequest) -> str:
    assert body.messages is not None
    return state.engine.render_chat(
        template_messages(body.messages),
        None,
        add_generation_prompt=bool(body.add_generation_prompt),
        continue_final_message=bool(body.continue_final_message),
        **(body.chat_template_kwargs or {}),
    )


async def _answer(state: ServerState, body: EmbeddingsRequest, id: str) -> dict[str, Any]:
    model = state.check_model(body.model)
    _refuse_embeddings(body)
    if body.messages is not None:
        given, places = [_rendered(state, body)], ["messages"]
        special = bool(body.add_special_tokens)  # the template writes them
    else:
        given, places = _split(body.input)
        special = body.add_special_tokens is not False
    prompts = await to_token_ids(state, body, given, places, special)
    outputs = await embed_all(
        state, body, id, prompts, places, dimensions=body.dimensions, normalize=body.normalize is not False
    )
    count = sum(map(len, prompts))
    return {
        "object": "list",
        "model": model,
        "data": [
            {"object": "embedding", "index": i, "embedding": _written(o, body.encoding_format)}
            for i, o in enumerate(outputs)
        ],
        "usage": {"prompt_tokens": count, "total_tokens": count},
    }


def _written(output: EmbeddingRequestOutput, encoding_format: str | None) -> list[float] | str:
    vector = output.outputs.vector
    if encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return output.outputs.embedding


@post("/v1/embeddings", status_code=200, operation_class=operation(EmbeddingsRequest, EmbeddingList))
async def embeddings(request: HttpRequest) -> Response[bytes]:
    """Text, token ids, lists of either, or a chat, as vectors."""
    state: ServerState = request.app.state.server
    state.check_open()
    body, raw = await read_body(request, _decoder, state.options.body_timeout_s)
    refuse_unknown(raw, EmbeddingsRequest, "/v1/embeddings")
    answer = await unless_gone(request, _answer(state, body, f"embd-{body.request_id or request_id(request)}"))
    return Response(encode(answer), media_type="application/json")
