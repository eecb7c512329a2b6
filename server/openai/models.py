"""GET /v1/models and /v1/models/{name}."""

from __future__ import annotations

from typing import Any

from litestar import Response, get

from server.errors import encode
from server.openai.answers import Model, ModelList
from server.openapi import operation
from server.state import HttpRequest, ServerState


def _card(state: ServerState, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": state.created_s,
        "owned_by": "backplane",
        "root": state.engine.config.model.model,
        "parent": None,
        "max_model_len": state.engine.ready.max_model_len,
    }


@get("/v1/models", operation_class=operation(answer=ModelList))
async def list_models(request: HttpRequest) -> Response[bytes]:
    """The names under which the model is served."""
    state: ServerState = request.app.state.server
    data = [_card(state, name) for name in state.served_names]
    return Response(encode({"object": "list", "data": data}), media_type="application/json")


@get("/v1/models/{name:path}", operation_class=operation(answer=Model))
async def show_model(request: HttpRequest, name: str) -> Response[bytes]:
    """One of those names. It may hold slashes, as Hugging Face's do."""
    state: ServerState = request.app.state.server
    # litestar gives a path with its leading slash
    bare = str(name).removeprefix("/")
    # a model that is served from a folder has a name that begins with a slash itself
    known = state.check_model(f"/{bare}" if f"/{bare}" in state.served_names else bare)
    return Response(encode(_card(state, known)), media_type="application/json")
