"""The executor "in_process", with what can begin before torch is loaded begun."""

from __future__ import annotations

from core.config import EngineConfig
from core.interfaces.executor import Executor
from core.kernels.compilers import has_nvidia_driver, hash_compiler, start_compilers
from core.registry import Registry


def in_process(config: EngineConfig, registry: Registry) -> Executor:
    """core/executor/in_process.py, with kernels' compilers where they will be wanted."""
    compilers = None
    if config.device.device != "cpu" and has_nvidia_driver():
        compilers = start_compilers(config.options())
        hash_compiler()
    try:
        from core.executor.in_process import InProcessExecutor

        return InProcessExecutor(config, registry, compilers)
    finally:
        if compilers is not None:
            compilers.close()
