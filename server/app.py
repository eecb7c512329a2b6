"""create_app: the engine behind HTTP."""

from __future__ import annotations

import logging

from litestar import Litestar
from litestar.config.cors import CORSConfig
from litestar.di import Provide
from litestar.openapi import OpenAPIConfig

import core
from core.engine.async_engine import AsyncEngine
from server.auth import KeyGuard
from server.config import ServerConfig
from server.errors import error_response
from server.health import health, live, metrics, ready, version
from server.openai.chat import chat_completions
from server.openai.completions import completions
from server.openai.models import get_model, list_models
from server.state import ServerState

logger = logging.getLogger("backplane")


def create_app(engine: AsyncEngine, options: ServerConfig) -> Litestar:
    """`engine` is started already; its owner shuts it down."""
    state = ServerState(engine, options)
    app = Litestar(
        [chat_completions, completions, list_models, get_model, health, live, ready, version, metrics],
        dependencies={"server": Provide(lambda: state, sync_to_thread=False)},
        guards=[KeyGuard(options.api_key)],
        exception_handlers={Exception: error_response},
        cors_config=CORSConfig(allow_origins=list(options.allowed_origins)) if options.allowed_origins else None,
        request_max_body_size=options.max_body_bytes,
        openapi_config=OpenAPIConfig(title="Backplane", version=core.__version__),
        logging_config=None,
    )
    app.state.server = state
    return app
