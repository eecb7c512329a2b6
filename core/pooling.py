"""Sequences as vectors: which rule pools a model's hidden states, and what a caller may ask of the vector.

The device gives the pooled states as they are (core/runner/pooling.py); cutting and normalising is done here.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np

from core.errors import RequestError

logger = logging.getLogger("backplane")

POOLING_TYPES = ("last", "mean")
_SENTENCE_TRANSFORMERS = {"pooling_mode_lasttoken": "last", "pooling_mode_mean_tokens": "mean"}


def pooling_type(wanted: str, folder: str) -> str:
    """What "auto" is for the model in `folder`: as 1_Pooling/config.json beside its weights says, else the last token."""
    if wanted != "auto":
        return wanted
    try:
        modes = json.loads((Path(folder) / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "last"
    if not isinstance(modes, dict):
        return "last"
    chosen = [name for key, name in _SENTENCE_TRANSFORMERS.items() if modes.get(key)]
    if len(chosen) == 1:
        return chosen[0]
    logger.warning(
        "%s/1_Pooling/config.json names no pooling that is served (last, mean): the last token is used", folder
    )
    return "last"


def finish(vector: np.ndarray, dimensions: int | None = None, normalize: bool = True) -> np.ndarray:
    """The first `dimensions` numbers (matryoshka, arXiv:2205.13147), at unit length unless `normalize` is false.

    vector: float32 [hidden]. Raises RequestError for more dimensions than there are.
    """
    if dimensions is not None:
        if not 1 <= dimensions <= len(vector):
            raise RequestError(
                f"dimensions={dimensions} is not allowed; the model's vectors have {len(vector)}, ask for 1 to that many",
                param="dimensions",
            )
        vector = vector[:dimensions]
    if not normalize:
        return vector
    wide = vector.astype(np.float64)  # the squares of float32 numbers can overflow
    length = np.linalg.norm(wide)
    return vector if length == 0 else (wide / length).astype(np.float32)
