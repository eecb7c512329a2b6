"""The OpenAPI document of the routes: bodies and answers from their msgspec structs, errors in one shape.

Litestar makes and serves the document; what it cannot see, since handlers read and write bytes, is said here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from litestar import Response, Router, get
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin, SwaggerRenderPlugin, YamlRenderPlugin
from litestar.openapi.spec import (
    Components,
    OpenAPIMediaType,
    OpenAPIResponse,
    Operation,
    Reference,
    RequestBody,
    SecurityScheme,
)

from server.errors import encode
from server.state import HttpRequest

_REF = "#/components/schemas/{name}"
_described: dict[str, Any] = {}
"""Structs that routes have named, by name."""


class ErrorDetail(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(msgspec.Struct):
    """Every answer that is not 200"""

    error: ErrorDetail


class Status(msgspec.Struct):
    status: str


def _reference(struct: Any) -> Reference | dict[str, str]:
    if struct is dict:
        return {"type": "object"}
    _described[struct.__name__] = struct
    return Reference(ref=_REF.format(name=struct.__name__))


def operation(
    body: Any = None, answer: Any = None, *, streams: bool = False, text: bool = False, error: Any = Error
) -> type[Operation]:
    """Operation class of a route: the structs of its body, its answer and its errors; `dict`: an object of any kind.

    streams: or server-sent events. text: the answer is plain text.
    """
    content: dict[str, OpenAPIMediaType] = {}
    if answer is not None:
        content["application/json"] = OpenAPIMediaType(schema=_reference(answer))  # type: ignore[arg-type]
    if streams:
        content["text/event-stream"] = OpenAPIMediaType(schema={"type": "string"})  # type: ignore[arg-type]
    if text:
        content["text/plain"] = OpenAPIMediaType(schema={"type": "string"})  # type: ignore[arg-type]
    said = {"application/json": OpenAPIMediaType(schema=_reference(error))}  # type: ignore[arg-type]
    wanted = OpenAPIMediaType(schema=_reference(body)) if body is not None else None  # type: ignore[arg-type]

    @dataclass
    class Described(Operation):
        def __post_init__(self) -> None:
            if wanted is not None:
                self.request_body = RequestBody(content={"application/json": wanted}, required=True)
            self.responses = {
                "200": OpenAPIResponse(description="The answer", content=content or None),
                "4XX": OpenAPIResponse(description="What is wrong with the request", content=said),
                "5XX": OpenAPIResponse(description="What is wrong here", content=said),
            }

    return Described


async def _complete(request: HttpRequest) -> None:
    """Add the structs to the document, which Litestar makes when it is first asked for."""
    components = request.app.openapi_schema.components
    assert components is not None
    if "Error" not in components.schemas:
        _, known = msgspec.json.schema_components(list(_described.values()), ref_template=_REF)
        components.schemas.update(known)  # type: ignore[arg-type]


@get("/openapi.json", opt={"public": True}, include_in_schema=False)
async def document(request: HttpRequest) -> Response[bytes]:
    """Where other servers of these APIs have it."""
    await _complete(request)
    return Response(encode(request.app.openapi_schema.to_schema()), media_type="application/json")


def config(version: str, *, keys: bool) -> OpenAPIConfig:
    """The page `/docs`, and the document that it shows."""
    schemes: dict[str, SecurityScheme | Reference] = {
        "key": SecurityScheme(type="http", scheme="bearer", description="--api-key")
    }
    return OpenAPIConfig(
        title="Backplane",
        version=version,
        description="OpenAI's and Anthropic's APIs over the Backplane engine.",
        use_handler_docstrings=True,
        components=Components(security_schemes=schemes if keys else None),
        security=[{"key": []}] if keys else None,
        render_plugins=[SwaggerRenderPlugin(path="/"), JsonRenderPlugin(), YamlRenderPlugin()],
        openapi_router=Router(
            path="/docs", route_handlers=[], opt={"public": True}, include_in_schema=False, before_request=_complete
        ),
    )
