"""Reads a checkpoint's config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.errors import ModelError


def read_model_config(folder: Path, overrides: Mapping[str, Any]) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder} has no config.json; give the folder of a Hugging Face checkpoint")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} is not a JSON object")
    # a vision-language wrapper keeps the decoder's numbers one level down
    config = {**config.get("text_config", {}), **config, **overrides}
    for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"):
        value = config.get(key)
        if not isinstance(value, int) or value <= 0:
            raise ModelError(f"{path}: {key!r} is {value!r}, not a positive integer")
    return config


def eos_token_ids(folder: Path, config: Mapping[str, Any]) -> frozenset[int]:
    """From generation_config.json where it says, else config.json; chat models often end with several."""
    found: set[int] = set()
    sources: list[Mapping[str, Any]] = [config]
    generation = folder / "generation_config.json"
    if generation.is_file():
        sources.append(json.loads(generation.read_text(encoding="utf-8")))
    for source in sources:
        value = source.get("eos_token_id")
        found.update([value] if isinstance(value, int) else value or [])
    return frozenset(found)
