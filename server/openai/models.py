"""GET /v1/models"""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Response, get

from server.errors import ApiError
from server.openai.schema import Model, ModelList
from server.state import ServerState


def _model(server: ServerState, name: str) -> Model:
    return Model(
        id=name, created=server.created, root=server.engine.config.model.model,
        max_model_len=server.engine.ready.max_model_len,
    )


@get("/v1/models")
async def list_models(server: ServerState) -> Response[Any]:
    models = ModelList(data=[_model(server, name) for name in server.names])
    return Response(msgspec.json.encode(models), media_type="application/json")


@get("/v1/models/{name:path}")
async def get_model(server: ServerState, name: str) -> Response[Any]:
    name = name.lstrip("/")
    if name not in server.names:
        raise ApiError(404, f"the model {name!r} is not served here; {', '.join(server.names)} is", code="model_not_found")
    return Response(msgspec.json.encode(_model(server, name)), media_type="application/json")
