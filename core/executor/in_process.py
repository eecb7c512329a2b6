"""The executor for one device, in the process that runs the engine's loop. Resolves every "auto"."""

from __future__ import annotations

import ctypes
import dataclasses
import logging
import os
import time
from pathlib import Path
from typing import Any

import torch

from core.batch import Bitmasks, StepPlan
from core.config import EngineConfig
from core.errors import ConfigError, ModelError, nearest
from core.executor.model_config import eos_token_ids, read_model_config
from core.executor.model_source import find_model
from core.interfaces.attention import AttentionBackend
from core.interfaces.model import ModelContext
from core.kernels import dispatch
from core.progress import ProgressLine
from core.registry import Registry
from core.runner.input_batch import InputBatch
from core.runner.memory import bytes_per_block, count_blocks
from core.runner.model_runner import ModelRunner, Ticket
from core.runner.profiling import Profiling
from core.sampling.rows import SamplingRows
from core.weights import checkpoint_files, fill_dummy, finish_linears, load_weights

log = logging.getLogger("backplane")

SMALL_MODEL_BYTES = 64 << 20
"""Below it one thread computes a step: its pieces are so short that threads mostly wait for each other, and where the
server or anything else wants a core, wait for long (3 to 9 tokens a second with two threads, 23 to 67 with one)."""
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


class InProcessExecutor:
    """See core/interfaces/executor.py."""

    def __init__(self, config: EngineConfig, registry: Registry) -> None:
        self.choices: dict[str, str] = {}
        self.timeline: list[tuple[str, float]] = []
        self._clock = time.perf_counter()
        source, folder = find_model(config.model, registry)
        self.choices["source"] = f"{source} ({config.model.model})"
        self.model_path = str(folder)
        self.model_config = read_model_config(folder, config.model.hf_overrides)
        self._phase("find model")
        device = self._device(config)
        dtype = self._dtype(config, device)
        backend_class = registry.get("attention_backend", self._attention(config, registry, device))
        backend = backend_class(device)
        if str(dtype).removeprefix("torch.") not in backend.capabilities.dtypes:
            raise ConfigError(
                f"attention backend {backend.name!r} does not take dtype {dtype}; it takes "
                f"{', '.join(sorted(backend.capabilities.dtypes))}"
            )
        deterministic = config.device.deterministic
        if deterministic and not (backend.capabilities.fixed_order and dispatch.on_gpu(torch.empty(0, device=device))):
            raise ConfigError(
                f"deterministic=True needs kernels that add in one order; attention backend {backend.name!r} on {device} "
                "has none. Use an NVIDIA GPU with the backend 'triton', or leave it off"
            )
        quantization = self._quantization(config, registry)
        architecture = self._architecture(config, registry)
        max_model_len = self._max_model_len(config)
        context = ModelContext(self.model_config, dtype, device, backend, quantization, max_model_len)
        model, weight_bytes = self._load(config, registry.get("model", architecture), context, folder)
        if device.type == "cpu" and config.device.num_threads is None and weight_bytes < SMALL_MODEL_BYTES:
            torch.set_num_threads(1)
            self.choices["device"] = "cpu (1 thread: a model this small only waits for a second one)"
        self._phase("load weights")
        block_size = config.cache.block_size
        kv_dtype = self._cache_dtype(config, backend, dtype)
        block_bytes = bytes_per_block(model.cache_spec, block_size, kv_dtype)
        budget = config.scheduler.max_num_batched_tokens or (2048 if device.type == "cpu" else 8192)
        used = 0
        if device.type == "cuda":
            # activations of the largest step, by arithmetic: residual, hidden, gate and up, logits in float32
            hidden, inner = self.model_config["hidden_size"], self.model_config.get("intermediate_size", 0)
            vocab = self.model_config["vocab_size"]
            activations = budget * (6 * hidden + 3 * inner) * dtype.itemsize
            activations += config.scheduler.max_num_seqs * vocab * 4 * 3
            used = torch.cuda.memory_reserved(device) + activations + (1 << 30)
        self.num_blocks, self.max_model_len = count_blocks(config, block_bytes, max_model_len, device, used)
        caches = [backend.allocate(spec, self.num_blocks, block_size, kv_dtype) for spec in model.cache_spec]
        self._phase("allocate cache")
        rows = config.scheduler.max_num_seqs
        batch = InputBatch(rows, self.max_model_len, block_size, device)
        self.runner = ModelRunner(model, backend, caches, batch, SamplingRows(rows, device), deterministic)
        if dispatch.on_gpu(batch.token_ids):
            captures = backend.capabilities.graph_capture and not config.device.enforce_eager
            largest = min(config.device.max_graph_batch, budget) if captures else 0
            shares = config.cache.enable_prefix_caching and not deterministic
            count = self.runner.warm_up(budget, largest, shares, self._phase)
            self.choices["graphs"] = f"{count} CUDA graphs of steps" if count else "none"
        self.vocab_size = int(self.model_config["vocab_size"])
        self.eos_token_ids = eos_token_ids(folder, self.model_config)
        self.memory = {"weights": weight_bytes, "kv_cache": self.num_blocks * block_bytes}
        overlap = config.scheduler.async_scheduling
        overlap = device.type == "cuda" if overlap is None else overlap
        self.config = dataclasses.replace(
            config,
            model=dataclasses.replace(config.model, max_model_len=self.max_model_len),
            scheduler=dataclasses.replace(config.scheduler, max_num_batched_tokens=budget, async_scheduling=overlap),
        )

        self._profiling = Profiling(config.device.profile_dir)
        self._steps_to_trace = 0
        if config.device.profile_steps:
            self._steps_to_trace = config.device.profile_steps + 1
            self._profiling.start()

    def launch(self, plan: StepPlan) -> None:
        if self._steps_to_trace:
            self._count_traced()
        self.runner.launch(plan)

    def _count_traced(self) -> None:
        self._steps_to_trace -= 1
        if self._steps_to_trace == 0:
            log.info("the trace is in %s", self._profiling.stop())

    def profile(self, action: str) -> str | None:
        """`start` or `stop` a trace -> its path. Raises ConfigError, or OSError where it cannot be written."""
        if action == "start":
            self._profiling.start()
            return None
        self._steps_to_trace = 0
        return self._profiling.stop()

    def sample(self, masks: Bitmasks | None) -> Ticket:
        return self.runner.sample(masks)

    def shutdown(self) -> None:
        """Give the memory back; a trace that still runs is written."""
        if self._profiling.is_running:
            log.info("the trace is in %s", self._profiling.stop())
        self.runner.caches.clear()

    def _load(self, config: EngineConfig, made_by: Any, context: ModelContext, folder: Path) -> tuple[Any, int]:
        """The model with its weights, and their bytes."""
        with torch.inference_mode():
            model = made_by(context)
            self._phase("build model")
            if config.model.load_format == "dummy":
                fill_dummy(model, config.model.seed)
            else:
                with ProgressLine("loading weights") as progress:
                    load_weights(model, model.weight_map, checkpoint_files(folder), progress)
            # counted as stored: a method may repack them into tensors of another kind
            weights = {p.data_ptr(): p.nbytes for p in model.parameters()}
            finish_linears(model)
        return model, sum(weights.values())

    # ---- resolving "auto"

    def _phase(self, name: str) -> None:
        now = time.perf_counter()
        self.timeline.append((name, now - self._clock))
        self._clock = now

    def _device(self, config: EngineConfig) -> torch.device:
        wanted = config.device.device
        has_gpu = torch.cuda.is_available()
        if wanted == "cuda" and not has_gpu:
            raise ConfigError("device 'cuda' was asked for and torch sees no GPU; install a CUDA build, or use 'cpu'")
        name = ("cuda" if has_gpu else "cpu") if wanted == "auto" else wanted
        if name == "cpu":
            threads = config.device.num_threads or len(os.sched_getaffinity(0))
            torch.set_num_threads(threads)
            keep_freed_memory()
            self.choices["device"] = f"cpu ({threads} thread{'s' * (threads > 1)})"
            return torch.device("cpu")
        device = torch.device("cuda", torch.cuda.current_device())
        self.choices["device"] = f"cuda ({torch.cuda.get_device_name(device)})"
        return device

    def _dtype(self, config: EngineConfig, device: torch.device) -> torch.dtype:
        wanted = config.model.dtype
        if wanted != "auto":
            return DTYPES[wanted]
        stored = str(self.model_config.get("dtype") or self.model_config.get("torch_dtype") or "float32")
        if device.type == "cpu":
            self.choices["dtype"] = f"float32 (CPU; stored as {stored})"
            return torch.float32
        dtype = DTYPES.get(stored, torch.bfloat16)
        if dtype is torch.float32:
            dtype = torch.bfloat16
        self.choices["dtype"] = f"{str(dtype).removeprefix('torch.')} (stored as {stored})"
        return dtype

    def _cache_dtype(self, config: EngineConfig, backend: AttentionBackend, dtype: torch.dtype) -> torch.dtype:
        wanted = config.cache.kv_cache_dtype
        if wanted == "auto":
            return dtype
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

    def _attention(self, config: EngineConfig, registry: Registry, device: torch.device) -> str:
        if config.plugins.attention_backend != "auto":
            return config.plugins.attention_backend
        names = registry.names("attention_backend")
        if "triton" in names and dispatch.on_gpu(torch.empty(0, device=device)):
            name, why = "triton", "on a GPU"
        elif device.type == "cpu":
            name, why = "torch", "on a CPU"
        else:
            least = ".".join(map(str, dispatch.MIN_CAPABILITY))
            name, why = (
                "torch",
                f"slow here: Triton needs the extra 'gpu' and an NVIDIA GPU of capability {least} or newer",
            )
        self.choices["attention_backend"] = f"{name} ({why})"
        return name

    def _quantization(self, config: EngineConfig, registry: Registry) -> Any:
        stored = self.model_config.get("quantization_config")
        wanted = config.plugins.quantization
        if wanted == "none" or (wanted == "auto" and not stored):
            return None
        if wanted != "auto":
            return registry.get("quantization", wanted)(stored or {})
        assert stored is not None
        broken = []
        for name in registry.names("quantization"):
            registry.entry("quantization", name)  # two that register one name are for the user to choose between
            try:
                method = registry.get("quantization", name)
                fits = method.matches(stored)
            except Exception as error:  # plugin; nobody chose it, and another may read this checkpoint
                log.warning("quantization %r is broken and left out: %s: %s", name, type(error).__name__, error)
                broken.append(name)
                continue
            if fits:
                self.choices["quantization"] = f"{name} (config.json)"
                return method(stored)
        raise ModelError(
            f"the checkpoint is quantized with {stored.get('quant_method')!r}, and no plugin reads that "
            f"({', '.join(registry.names('quantization')) or 'none is installed'})"
            + (f"; left out as broken: {', '.join(broken)}" if broken else "")
        )

    def _architecture(self, config: EngineConfig, registry: Registry) -> str:
        if config.plugins.model_impl != "auto":
            return config.plugins.model_impl
        known = registry.names("model")
        named = self.model_config.get("architectures") or []
        for name in named:
            if name in known:
                self.choices["model_impl"] = f"{name} (config.json)"
                return str(name)
        raise ModelError(
            f"architecture {', '.join(map(str, named)) or 'none'} of {self.model_path}/config.json is not served "
            f"({', '.join(sorted(known))}){nearest(str(named[0]), known) if named else ''}; install a plugin for it"
        )

    def _max_model_len(self, config: EngineConfig) -> int:
        made_for = int(self.model_config.get("max_position_embeddings") or 2048)
        wanted = config.model.max_model_len
        if wanted is None:
            return made_for
        if wanted > made_for:
            raise ConfigError(f"max_model_len={wanted} is more than the {made_for} tokens the model was made for")
        return wanted
