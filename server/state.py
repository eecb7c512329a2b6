"""What the routes share: the engine, the options, and what is served."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.engine.async_engine import AsyncEngine
from server.config import ServerConfig
from server.errors import ApiError
from server.metrics import Metrics

DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


class ServerState:
    def __init__(self, engine: AsyncEngine, options: ServerConfig) -> None:
        self.engine, self.options = engine, options
        self.names = engine.config.model.served_model_name or (engine.config.model.model,)
        self.metrics = Metrics(self.names[0])
        engine.observers.append(self.metrics)
        self.draining = False
        self.created = int(time.time())
        self.sampling_defaults = _generation_config(Path(engine.ready.model_path))

    def admit(self, model: str | None) -> str:
        """The served name a request meant. Raises ApiError while draining, and for a model that is not here."""
        if self.draining:
            raise ApiError(
                503, "the server is shutting down; send this to another one", type="server_error", code="draining",
                headers={"Retry-After": "5", "Connection": "close"},
            )
        if model is not None and model not in self.names:
            raise ApiError(
                404, f"the model {model!r} is not served here; {', '.join(map(repr, self.names))} is", param="model",
                code="model_not_found",
            )
        return model or self.names[0]


def _generation_config(folder: Path) -> Mapping[str, Any]:
    path = folder / "generation_config.json"
    if not path.is_file():
        return {}
    config = json.loads(path.read_text(encoding="utf-8"))
    return {k: config[k] for k in DEFAULTS if config.get(k) is not None}
