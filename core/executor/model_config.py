"""Reads a checkpoint's config.json, and says what is wrong with it before anything is built from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.errors import ModelError

_NEEDED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
_COUNTS = ("num_key_value_heads", "head_dim", "intermediate_size", "max_position_embeddings", "sliding_window")
_NUMBERS = ("rms_norm_eps", "rope_theta")
_OBJECTS = ("text_config", "rope_parameters", "rope_scaling", "quantization_config")


class CheckpointConfig(dict[str, Any]):
    """What config.json says. Reading a key that is not there is a ModelError that names the file."""

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self._path = path

    def __missing__(self, key: str) -> Any:
        raise ModelError(f"{self._path} lacks {key!r}, which this architecture needs; download it again, or add it")


def read_model_config(folder: Path, overrides: Mapping[str, Any]) -> CheckpointConfig:
    """config.json with `overrides` over it. Raises ModelError for a value that no architecture could use."""
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder} has no config.json; give the folder of a Hugging Face checkpoint")
    config = {**_object(path), **overrides}
    _check_kinds(path, config)
    # a vision-language wrapper keeps the decoder's numbers one level down
    config = {**(config.get("text_config") or {}), **config}
    _check_kinds(path, config)
    config |= _rope_overrides(config, overrides)
    for key in _NEEDED:
        if not _is_count(config.get(key)):
            raise ModelError(f"{path}: {key!r} is {config.get(key)!r}, not a positive integer")
    heads, kv_heads = config["num_attention_heads"], config.get("num_key_value_heads")
    if kv_heads and heads % kv_heads:
        raise ModelError(
            f"{path}: num_attention_heads={heads} is no multiple of num_key_value_heads={kv_heads}; "
            "each key-value head serves the same number of query heads"
        )
    return CheckpointConfig(path, config)


def _rope_overrides(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """rope_scaling and rope_theta of `overrides`, which win over the newer spelling, `rope_parameters`, of the file.

    Scaling that stretches positions makes the model longer, unless the length is overridden too.
    """
    if "rope_parameters" in overrides or not {"rope_scaling", "rope_theta"} & overrides.keys():
        return {}
    stored = config.get("rope_parameters") or {}
    scaling = (overrides.get("rope_scaling") or {}) if "rope_scaling" in overrides else stored
    rope = {**scaling, "rope_theta": overrides.get("rope_theta") or stored.get("rope_theta", config.get("rope_theta"))}
    if rope["rope_theta"] is None:
        del rope["rope_theta"]
    changed: dict[str, Any] = {"rope_parameters": rope}
    kind, factor = rope.get("rope_type", rope.get("type")), rope.get("factor", 1)
    if "rope_scaling" in overrides and kind in ("linear", "yarn") and "max_position_embeddings" not in overrides:
        original = rope.get("original_max_position_embeddings") or config.get("max_position_embeddings") or 2048
        rope["original_max_position_embeddings"] = original
        changed["max_position_embeddings"] = int(original * factor)
    return changed


def eos_token_ids(folder: Path, config: Mapping[str, Any]) -> frozenset[int]:
    """From generation_config.json where it says, else config.json; chat models often end with several."""
    found: set[int] = set()
    sources: list[tuple[Path, Mapping[str, Any]]] = [(folder / "config.json", config)]
    generation = folder / "generation_config.json"
    if generation.is_file():
        sources.append((generation, _object(generation)))
    for path, source in sources:
        value = source.get("eos_token_id")
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(i, int) for i in ids):
            raise ModelError(f"{path}: 'eos_token_id' is {value!r}, not a token id or a list of them")
        found.update(ids)
    return frozenset(found)


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON: {error}; download it again") from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} is not a JSON object; download it again")
    return value


def _check_kinds(path: Path, config: Mapping[str, Any]) -> None:
    """Values may be missing or null; what is there has its kind."""

    def refuse(key: str, kind: str) -> None:
        raise ModelError(f"{path}: {key!r} is {config[key]!r}, not {kind}")

    for key in _COUNTS:
        if config.get(key) is not None and not _is_count(config[key]):
            refuse(key, "a positive integer")
    for key in _NUMBERS:
        value = config.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not value > 0):
            refuse(key, "a positive number")
    for key in _OBJECTS:
        if config.get(key) is not None and not isinstance(config[key], dict):
            refuse(key, "an object")
    named = config.get("architectures")
    if named is not None and not (isinstance(named, list) and all(isinstance(n, str) for n in named)):
        refuse("architectures", "a list of names")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
