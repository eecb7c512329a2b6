"""The contract of an executor: where the model runs."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np

from core.batch import Bitmasks, StepPlan, StepResult
from core.config import EngineConfig


class StepTicket(Protocol):
    """The promise of one step's result."""

    def result(self) -> StepResult:
        """Wait for the copy to the host."""


class Executor(Protocol):
    """Made once per engine. launch, then sample, in that order, for each plan."""

    config: EngineConfig
    """With every "auto" resolved."""
    vocab_size: int
    eos_token_ids: frozenset[int]
    num_blocks: int
    max_model_len: int
    choices: dict[str, str]
    timeline: list[tuple[str, float]]
    memory: dict[str, int]
    model_path: str
    generates: bool = True
    """May be left out. False: the model embeds alone."""

    def launch(self, plan: StepPlan) -> None:
        """Queue the forward pass."""

    def sample(self, masks: Bitmasks | None) -> StepTicket:
        """Queue sampling of the launched plan and the copy to the host."""

    def profile(self, action: str) -> str | None:
        """`start` or `stop` a trace of what the workers do -> where it was written. Raises ConfigError if it cannot."""

    def shutdown(self) -> None:
        """Give the device's memory back. Called once, after the last result."""


@runtime_checkable
class PinnedMasks(Protocol):
    """What an executor may offer besides: memory for masks that the device reads as it lies."""

    def mask_buffer(self, lines: int, words: int) -> np.ndarray:
        """int32 [lines, words], of any content. Written anew for a step once the result of the step before is there."""
