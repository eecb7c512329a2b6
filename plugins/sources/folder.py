"""A checkpoint in a local folder."""

from __future__ import annotations

from pathlib import Path

from core.config import ModelConfig
from core.errors import ModelError


class FolderSource:
    name = "folder"
    rank = 0
    local = True

    def matches(self, model: str) -> bool:
        return Path(model).exists() or model.startswith(("/", "./", "../", "~"))

    def resolve(self, config: ModelConfig) -> Path:
        path = Path(config.model).expanduser()
        if not path.exists():
            raise ModelError(f"model folder {str(path)!r} does not exist")
        if not path.is_dir():
            raise ModelError(f"{str(path)!r} is a file; give the folder that holds config.json")
        return path
