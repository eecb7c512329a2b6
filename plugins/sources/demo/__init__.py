"""The bundled demo model (`demo`) and its small draft (`demo-draft`)."""

from __future__ import annotations

from pathlib import Path

from core.config import ModelConfig
from core.errors import ModelError

FOLDERS = {"demo": "chat", "demo-draft": "draft"}


class DemoSource:
    name = "demo"
    rank = 1
    local = True

    def matches(self, model: str) -> bool:
        return model in FOLDERS

    def resolve(self, config: ModelConfig) -> Path:
        path = Path(__file__).parent / "data" / FOLDERS[config.model]
        if not (path / "config.json").is_file():
            raise ModelError(f"the demo model is missing from this installation ({path}); install the package again")
        return path
