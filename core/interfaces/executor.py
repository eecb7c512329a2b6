"""The contract of an executor: where the model runs."""

from __future__ import annotations

from typing import Protocol

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
