"""An executor without a model, for measuring all the rest: a step takes NOOP_STEP_MS (0: no time) and gives some tokens.

A server finds it as it finds any plugin: `environment()` is that of a process in which this module is an installed one.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from core.batch import Bitmasks, StepPlan, StepResult
from core.config import EngineConfig
from core.hookspecs import hookimpl
from core.registry import Registry

MAX_MODEL_LEN, NUM_BLOCKS, MAX_BATCHED_TOKENS = 2048, 65536, 8192
FIRST = 300
"""Tokens are drawn from here on: words of the demo's tokenizer, no special ones."""


@hookimpl
def register_executors(register: Any) -> None:
    register("noop", "noop:NoopExecutor")


def environment(step_ms: float = 0.0) -> dict[str, str]:
    """Variables for a child process, beside those of this one."""
    folder = tempfile.mkdtemp(prefix="noop-")
    metadata = Path(folder) / "backplane_noop-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: backplane-noop\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[backplane.plugins]\nnoop = noop\n")
    here = Path(__file__).parent
    paths = [folder, str(here), str(here.parent), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p), "NOOP_STEP_MS": str(step_ms)}


class _Ticket:
    def __init__(self, result: StepResult, ready_s: float) -> None:
        self._result, self._ready_s = result, ready_s

    def result(self) -> StepResult:
        wait_s = self._ready_s - time.monotonic()
        if wait_s > 0:
            time.sleep(wait_s)
        return self._result


class NoopExecutor:
    """The demo model's tokenizer and vocabulary, and none of its arithmetic."""

    def __init__(self, config: EngineConfig, registry: Registry) -> None:
        from core.executor.model_config import eos_token_ids, read_model_config
        from core.executor.model_source import find_model

        _, folder = find_model(config.model, registry)
        model = read_model_config(folder, config.model.hf_overrides)
        self.model_path = str(folder)
        self.vocab_size = int(model["vocab_size"])
        self.eos_token_ids = eos_token_ids(folder, model)
        self.num_blocks = config.cache.num_blocks or NUM_BLOCKS
        self.max_model_len = config.model.max_model_len or MAX_MODEL_LEN
        self.choices = {"executor": "noop (a benchmark)"}
        self.timeline: list[tuple[str, float]] = []
        self.memory: dict[str, int] = {}
        budget = config.scheduler.max_num_batched_tokens or MAX_BATCHED_TOKENS
        self.config = dataclasses.replace(
            config,
            model=dataclasses.replace(config.model, max_model_len=self.max_model_len),
            scheduler=dataclasses.replace(config.scheduler, max_num_batched_tokens=budget, async_scheduling=True),
        )
        self._step_s = float(os.environ.get("NOOP_STEP_MS", "0")) / 1000
        self._words = np.arange(FIRST, self.vocab_size - 8, dtype=np.int32)
        self._plan: StepPlan | None = None
        self._free_s = 0.0

    def launch(self, plan: StepPlan) -> None:
        self._plan = plan

    def sample(self, masks: Bitmasks | None) -> _Ticket:
        plan = self._plan
        assert plan is not None
        rows = plan.rows[plan.samples].astype(np.int64)
        tokens = self._words[(rows * 7919 + plan.step * 104729) % len(self._words)]
        # one step after the other, as on a device
        self._free_s = max(self._free_s, time.monotonic()) + self._step_s
        return _Ticket(StepResult(tokens), self._free_s)

    def profile(self, action: str) -> str | None:
        return None

    def shutdown(self) -> None: ...
