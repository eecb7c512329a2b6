"""Resolves every "auto" of one engine: what is chosen for this checkpoint on this machine, and why."""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Collection
from typing import Any

import torch

from core.config import EngineConfig
from core.errors import ConfigError, ModelError, nearest
from core.executor.model_config import read_model_config
from core.executor.model_source import find_model
from core.interfaces.attention import AttentionBackend
from core.interfaces.model import ModelContext
from core.kernels import dispatch
from core.registry import Registry

log = logging.getLogger("backplane")

SMALL_MODEL_BYTES = 64 << 20
"""Below it one thread computes a step: its pieces are so short that threads mostly wait for each other, and where the
server or anything else wants a core, wait for long (3 to 9 tokens a second with two threads, 23 to 67 with one)."""
BYTES_A_THREAD = 8 << 20
"""With the kernels of core/kernels/cpu, whose steps have a tenth of the pieces, each thread gets at least so much to read. The demo
model then has two, 1.7 times as fast for one request; while other programs want the cores a recorded step keeps to one
(core/kernels/cpu/pace.py)."""
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
FP8_CAPABILITY = (8, 9)
CACHE_DTYPES = {**DTYPES, "fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}


def keep_freed_memory() -> None:
    """Have glibc keep what a step frees for the next step, instead of giving it to the system and faulting it in anew.

    Measured on a 125 M Llama, 2 cores: 43 instead of 36 tokens/s for one stream, 225 instead of 195 for 16.
    """
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return  # another system, or another libc
    libc.mallopt(mmap_threshold, 1 << 30) or libc.mallopt(mmap_threshold, 1 << 25)
    libc.mallopt(trim_threshold, (1 << 31) - 1)


class Choices:
    """Made when the engine is built, before any weight is read. Raises ConfigError, ModelError, PluginError."""

    def __init__(self, config: EngineConfig, registry: Registry) -> None:
        self._config, self._registry = config, registry
        self.told: dict[str, str] = {}
        """Option -> "value (reason)", shown at start-up."""
        source, self.folder = find_model(config.model, registry)
        self.told["source"] = f"{source} ({config.model.model})"
        self.model_config = read_model_config(self.folder, config.model.hf_overrides)
        self.device = self._device()
        self.dtype = self._dtype()
        self.backend: AttentionBackend = registry.get("attention_backend", self._attention())(self.device)
        self._check_backend()
        self.quantization = self._quantization()
        self.architecture = self._architecture()
        self.max_model_len = self._max_model_len()

    def model_context(self) -> ModelContext:
        """What a model is built from."""
        return ModelContext(
            self.model_config, self.dtype, self.device, self.backend, self.quantization, self.max_model_len
        )

    def fit_threads(self, weight_bytes: int) -> None:
        """Fewer threads than cores for a small model on a CPU, unless a number was asked for."""
        if self.device.type != "cpu" or self._config.device.num_threads is not None:
            return
        cores = torch.get_num_threads()
        if dispatch.on_cpu(torch.empty(0, dtype=self.dtype)):
            wanted = max(1, weight_bytes // BYTES_A_THREAD)
        else:
            wanted = 1 if weight_bytes < SMALL_MODEL_BYTES else cores
        if wanted < cores:
            torch.set_num_threads(wanted)
            self.told["device"] = f"cpu ({wanted} thread{'s' * (wanted > 1)}: a model this small only waits for more)"

    def _check_backend(self) -> None:
        backend, device = self.backend, self.device
        if str(self.dtype).removeprefix("torch.") not in backend.capabilities.dtypes:
            raise ConfigError(
                f"attention backend {backend.name!r} does not take dtype {self.dtype}; it takes "
                f"{', '.join(sorted(backend.capabilities.dtypes))}: choose one with --dtype, or another backend "
                "(--attention-backend auto)"
            )
        if self._config.device.deterministic and not (
            backend.capabilities.fixed_order and dispatch.on_gpu(torch.empty(0, device=device))
        ):
            raise ConfigError(
                f"deterministic=True needs kernels that add in one order; attention backend {backend.name!r} on {device} "
                "has none. Use an NVIDIA GPU with the backend 'triton', or leave it off"
            )

    def _device(self) -> torch.device:
        wanted = self._config.device.device
        has_gpu = torch.cuda.is_available()
        if wanted == "cuda" and not has_gpu:
            raise ConfigError("device 'cuda' was asked for and torch sees no GPU; install a CUDA build, or use 'cpu'")
        name = ("cuda" if has_gpu else "cpu") if wanted == "auto" else wanted
        if name == "cpu":
            threads = self._config.device.num_threads or _asked_threads() or len(os.sched_getaffinity(0))
            torch.set_num_threads(threads)
            keep_freed_memory()
            self.told["device"] = f"cpu ({threads} thread{'s' * (threads > 1)})"
            return torch.device("cpu")
        device = torch.device("cuda", torch.cuda.current_device())
        self.told["device"] = f"cuda ({torch.cuda.get_device_name(device)})"
        return device

    def _dtype(self) -> torch.dtype:
        wanted = self._config.model.dtype
        if wanted != "auto":
            self.told["dtype"] = f"{wanted} (asked for)"
            return DTYPES[wanted]
        stored = str(self.model_config.get("dtype") or self.model_config.get("torch_dtype") or "float32")
        if self.device.type == "cpu":
            self.told["dtype"] = f"float32 (CPU; stored as {stored})"
            return torch.float32
        dtype = DTYPES.get(stored, torch.bfloat16)
        if dtype is torch.float32:
            dtype = torch.bfloat16
        self.told["dtype"] = f"{str(dtype).removeprefix('torch.')} (stored as {stored})"
        return dtype

    def cache_dtype(self) -> torch.dtype:
        """What keys and values are stored as. Raises ConfigError if the backend, or the GPU, cannot."""
        backend = self.backend
        wanted = self._config.cache.kv_cache_dtype
        if wanted == "auto":
            return self.dtype
        name = "fp8_e4m3" if wanted == "fp8" else wanted
        can = backend.capabilities.cache_dtypes or backend.capabilities.dtypes
        if name not in can:
            raise ConfigError(
                f"attention backend {backend.name!r} stores no keys and values as {wanted!r}; it takes auto, "
                f"{', '.join(sorted(can))}"
            )
        if name == "fp8_e4m3" and torch.cuda.get_device_capability() < FP8_CAPABILITY:
            raise ConfigError(
                f"kv_cache_dtype={wanted!r} (e4m3) needs a GPU of capability 8.9 or newer (Ada, Hopper); use 'fp8_e5m2'"
            )
        return CACHE_DTYPES[name]

    def _attention(self) -> str:
        wanted = self._config.plugins.attention_backend
        if wanted != "auto":
            self.told["attention_backend"] = f"{wanted} (asked for)"
            return wanted
        names = self._registry.names("attention_backend")
        if "triton" in names and dispatch.on_gpu(torch.empty(0, device=self.device)):
            name, why = "triton", "on a GPU; measured at vLLM's speed, others by name alone"
        elif self.device.type == "cpu":
            name, why = self._attention_on_cpu(names)
        else:
            least = ".".join(map(str, dispatch.MIN_CAPABILITY))
            name, why = (
                "torch",
                f"slow here: Triton needs the extra 'gpu' and an NVIDIA GPU of capability {least} or newer",
            )
        self.told["attention_backend"] = f"{name} ({why})"
        return name

    def _attention_on_cpu(self, names: Collection[str]) -> tuple[str, str]:
        stored = self._config.cache.kv_cache_dtype
        if "numba" not in names or self.dtype != torch.float32:
            return "torch", "on a CPU"
        if not dispatch.on_cpu(torch.empty(0, device=self.device)):
            return "torch", "on a CPU; the extra 'cpu' brings kernels that are faster: pip install 'backplane[cpu]'"
        if stored not in ("auto", "float32"):
            return "torch", f"on a CPU, for a cache in {stored}"
        return "numba", "on a CPU"

    def _quantization(self) -> Any:
        stored = self.model_config.get("quantization_config")
        wanted = self._config.plugins.quantization
        if wanted == "none" or (wanted == "auto" and not stored):
            return None
        if wanted != "auto":
            self.told["quantization"] = f"{wanted} (asked for)"
            return self._registry.get("quantization", wanted)(stored or {})
        assert stored is not None
        broken = []
        for name in self._registry.names("quantization"):
            self._registry.entry("quantization", name)  # two that register one name are for the user to choose between
            try:
                method = self._registry.get("quantization", name)
                fits = method.matches(stored)
            except Exception as error:  # plugin; nobody chose it, and another may read this checkpoint
                log.warning("quantization %r is broken and left out: %s: %s", name, type(error).__name__, error)
                broken.append(name)
                continue
            if fits:
                self.told["quantization"] = f"{name} (config.json)"
                return method(stored)
        raise ModelError(
            f"the checkpoint is quantized with {stored.get('quant_method')!r}, and no plugin reads that "
            f"({', '.join(self._registry.names('quantization')) or 'none is installed'})"
            + (f"; left out as broken: {', '.join(broken)}" if broken else "")
        )

    def _architecture(self) -> str:
        wanted = self._config.plugins.model_impl
        if wanted != "auto":
            self.told["model_impl"] = f"{wanted} (asked for)"
            return wanted
        known = self._registry.names("model")
        named = self.model_config.get("architectures") or []
        for name in named:
            if name in known:
                self.told["model_impl"] = f"{name} (config.json)"
                return str(name)
        raise ModelError(
            f"architecture {', '.join(map(str, named)) or 'none'} of {self.folder}/config.json is not served "
            f"({', '.join(sorted(known))}){nearest(str(named[0]), known) if named else ''}; install a plugin for it"
        )

    def _max_model_len(self) -> int:
        made_for = int(self.model_config.get("max_position_embeddings") or 2048)
        wanted = self._config.model.max_model_len
        if wanted is None:
            return made_for
        if wanted > made_for:
            raise ConfigError(f"max_model_len={wanted} is more than the {made_for} tokens the model was made for")
        return wanted


def _asked_threads() -> int:
    """What OMP_NUM_THREADS asks of every program, as torch reads it: the first of a list. 0: nothing that is a number."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isdecimal() else 0
