"""torch.profiler around the engine's steps, into a trace that chrome://tracing and Perfetto open."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch

from core.errors import ConfigError


class Profiling:
    """One trace at a time."""

    def __init__(self, folder: str | None) -> None:
        """folder: where traces go, made when the first is written; None: there are none."""
        self._folder = folder
        self._profile: Any = None

    @property
    def is_running(self) -> bool:
        return self._profile is not None

    def start(self) -> None:
        """Raises ConfigError without a folder, or while a trace runs."""
        if self._folder is None:
            raise ConfigError("no trace can be written: start with --profile-dir FOLDER")
        if self._profile is not None:
            raise ConfigError("a trace is running; stop it first (POST /stop_profile)")
        kinds = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            kinds.append(torch.profiler.ProfilerActivity.CUDA)
        self._profile = torch.profiler.profile(activities=kinds)
        self._profile.start()

    def stop(self) -> str:
        """-> the trace's path. Raises ConfigError if none runs, OSError if it cannot be written."""
        if self._profile is None:
            raise ConfigError("no trace is running; start one first (POST /start_profile)")
        assert self._folder is not None
        profile, self._profile = self._profile, None
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        profile.stop()
        folder = Path(self._folder)
        folder.mkdir(parents=True, exist_ok=True)
        name = f"backplane-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.json.gz"
        profile.export_chrome_trace(str(folder / name))
        return str(folder / name)
