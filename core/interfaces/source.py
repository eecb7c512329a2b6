"""The contract of a model source: a name -> a folder with a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from core.config import ModelConfig


class ModelSource(Protocol):
    """Made without arguments; all sources are asked for every model.

    One that fetches nothing may say so with `local = True`: a server then reads the tokenizer while its engine loads the weights.
    """

    name: str

    def matches(self, model: str) -> bool:
        """Could `model` be found here? Sources are asked in the order of their `rank`, low first."""

    rank: int

    def resolve(self, config: ModelConfig) -> Path:
        """A local folder with config.json, tokenizer and weights. Raises ModelError."""
