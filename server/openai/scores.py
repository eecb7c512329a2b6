"""POST /v1/score and /v1/rerank, with vLLM's, Jina's and Cohere's bodies.

The models served here are decoders, so a score is the cosine similarity of two embeddings, from -1 to 1.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec
import numpy as np
from litestar import Response, post
from litestar.handlers.base import BaseRouteHandler

from server.errors import ApiError, encode, invalid, unsupported
from server.openai.answers import Ranking, ScoreList
from server.openai.embeddings import MAX_INPUTS, embed_all, refuse, to_token_ids
from server.openai.params import refuse_unknown
from server.openai.schema import RerankRequest, ScoreRequest
from server.openapi import operation
from server.presence import unless_gone
from server.state import HttpRequest, ServerState, read_body, request_id

_score = msgspec.json.Decoder(ScoreRequest)
_rerank = msgspec.json.Decoder(RerankRequest)


def _listed(given: str | list[str], name: str) -> tuple[list[str], list[str]]:
    """The texts of a field, each with its place."""
    if isinstance(given, str):
        return [given], [name]
    if not given:
        raise invalid(name, f"{name} is empty")
    if len(given) > MAX_INPUTS:
        raise invalid(name, f"{len(given)} texts are more than the {MAX_INPUTS} that one request may have")
    return given, [f"{name}[{i}]" for i in range(len(given))]


def _side(body: ScoreRequest, *names: str) -> tuple[str | list[str], str]:
    """The one of `names` that the body has, and its name."""
    given = [n for n in names if getattr(body, n) is not None]
    if len(given) != 1:
        what = f"only one of {', '.join(given)}" if given else f"{names[0]} (or {' or '.join(names[1:])})"
        raise ApiError(f"send {what}", param=(given or names)[0], code="missing_required_parameter")
    value: str | list[str] = getattr(body, given[0])
    return value, given[0]


async def _scored(state: ServerState, body: ScoreRequest, id: str) -> dict[str, Any]:
    model = state.check_model(body.model)
    refuse(body)
    first, first_places = _listed(*_side(body, "text_1", "queries", "data_1"))
    second, second_places = _listed(*_side(body, "text_2", "documents", "data_2"))
    if len(first) not in (1, len(second)):
        raise invalid(
            first_places[0].partition("[")[0],
            f"{len(first)} texts cannot be paired with {len(second)}; send one, or as many",
        )
    places = [*first_places, *second_places]
    prompts = await to_token_ids(state, body, [*first, *second], places, body.add_special_tokens is not False)
    outputs = await embed_all(state, body, id, prompts, places)
    vectors = [o.outputs.vector for o in outputs]
    left, right = vectors[: len(first)], vectors[len(first) :]
    scores = np.einsum("ij,ij->i", np.broadcast_to(np.array(left), (len(right), len(right[0]))), np.array(right))
    count = sum(map(len, prompts))
    return {
        "id": id,
        "object": "list",
        "created": int(time.time()),
        "model": model,
        "data": [{"index": i, "object": "score", "score": s} for i, s in enumerate(scores.tolist())],
        "usage": {"prompt_tokens": count, "total_tokens": count},
    }


def _texts(documents: list[str | dict[str, Any]]) -> list[str]:
    texts = []
    for i, document in enumerate(documents):
        text = document if isinstance(document, str) else document.get("text")
        if not isinstance(text, str):
            raise invalid(f"documents[{i}]", f"documents[{i}] is neither text nor an object with a text")
        texts.append(text)
    return texts


async def _ranked(state: ServerState, body: RerankRequest, id: str) -> dict[str, Any]:
    model = state.check_model(body.model)
    refuse(body)
    if body.rank_fields is not None:
        raise unsupported("rank_fields", "send documents as text")
    if body.top_n is not None and body.top_n < 0:
        raise invalid("top_n", f"top_n={body.top_n} must be 0 (all) or positive")
    if body.max_tokens_per_doc is not None and body.max_tokens_per_doc < 1:
        raise invalid("max_tokens_per_doc", f"max_tokens_per_doc={body.max_tokens_per_doc} must be positive")
    documents, places = _listed(_texts(body.documents), "documents")
    prompts = await to_token_ids(
        state, body, [body.query, *documents], ["query", *places], body.add_special_tokens is not False
    )
    if body.max_tokens_per_doc is not None:
        prompts[1:] = [p[: body.max_tokens_per_doc] for p in prompts[1:]]
    query, *rest = await embed_all(state, body, id, prompts, ["query", *places])
    scores = np.array([o.outputs.vector for o in rest]) @ query.outputs.vector
    order = np.argsort(-scores, kind="stable")[: body.top_n or None]
    results = [{"index": int(i), "relevance_score": float(scores[i])} for i in order]
    if body.return_documents is not False:
        for result in results:
            result["document"] = {"text": documents[int(result["index"])]}  # type: ignore[assignment]
    count = sum(map(len, prompts))
    return {"id": id, "model": model, "usage": {"prompt_tokens": count, "total_tokens": count}, "results": results}


@post(["/score", "/v1/score"], status_code=200, operation_class=operation(ScoreRequest, ScoreList))
async def score(request: HttpRequest) -> Response[bytes]:
    """How alike texts are, pair by pair: the cosine similarity of their embeddings."""
    state: ServerState = request.app.state.server
    state.check_open()
    body, raw = await read_body(request, _score, state.options.body_timeout_s)
    refuse_unknown(raw, ScoreRequest, "/v1/score")
    answer = await unless_gone(request, _scored(state, body, f"score-{body.request_id or request_id(request)}"))
    return Response(encode(answer), media_type="application/json")


@post(["/rerank", "/v1/rerank", "/v2/rerank"], status_code=200, operation_class=operation(RerankRequest, Ranking))
async def rerank(request: HttpRequest) -> Response[bytes]:
    """Documents by how alike they are to a query, the most alike first: the cosine similarity of embeddings."""
    state: ServerState = request.app.state.server
    state.check_open()
    body, raw = await read_body(request, _rerank, state.options.body_timeout_s)
    refuse_unknown(raw, RerankRequest, "/v1/rerank")
    answer = await unless_gone(request, _ranked(state, body, f"rerank-{body.request_id or request_id(request)}"))
    return Response(encode(answer), media_type="application/json")


ROUTES: list[BaseRouteHandler] = [score, rerank]
