"""What a committed step means for the clients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from core.request import Request


@dataclass(frozen=True, slots=True)
class StepUpdate:
    """What one committed step changed."""

    handles: np.ndarray
    """int64 [k]: sequences that stream and got a token"""
    token_ids: np.ndarray
    """int32 [k]"""
    finished: Sequence[Request]
    """With output_token_ids, finish_reason and stop_reason set"""
    first_tokens: Sequence[Request] = ()
    """Requests whose first token this was"""
