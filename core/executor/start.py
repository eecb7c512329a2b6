"""The executor "in_process", with what can begin before torch is loaded begun."""

from __future__ import annotations

from pathlib import Path

from core.config import EngineConfig
from core.interfaces.executor import Executor
from core.kernels.compilers import hash_compiler, start_compilers
from core.registry import Registry

NVIDIA_DRIVER = Path("/dev/nvidiactl")
"""There where the driver is: nothing has to be loaded to see that."""


def in_process(config: EngineConfig, registry: Registry) -> Executor:
    """core/executor/in_process.py, with kernels' compilers where they will be wanted."""
    compilers = None
    if config.device.device != "cpu" and NVIDIA_DRIVER.exists():
        compilers = start_compilers(config.options())
        hash_compiler()
    try:
        from core.executor.in_process import InProcessExecutor

        return InProcessExecutor(config, registry, compilers)
    finally:
        if compilers is not None:
            compilers.close()
