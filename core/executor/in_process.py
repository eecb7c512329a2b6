"""The executor for one device, in the process that runs the engine's loop."""

from __future__ import annotations

import dataclasses
import logging
import time
from typing import Any

import numpy as np
import torch

from core.batch import Bitmasks, StepPlan
from core.config import EngineConfig
from core.executor.attention_check import check_attention
from core.executor.choices import Choices
from core.executor.model_config import eos_token_ids
from core.executor.read_ahead import read_ahead
from core.interfaces.executor import StepTicket
from core.kernels import dispatch
from core.kernels.compilers import Compilers
from core.progress import ProgressLine
from core.registry import Registry
from core.runner.graph_sizes import MIXED_SIZES, largest_step, peak_flops, tokens_worth_capturing
from core.runner.input_batch import InputBatch
from core.runner.memory import bytes_per_block, count_blocks
from core.runner.model_runner import ModelRunner
from core.runner.profiling import Profiling
from core.sampling.rows import SamplingRows
from core.weights import checkpoint_files, fill_dummy, finish_linears, load_weights

log = logging.getLogger("backplane")


class InProcessExecutor:
    """See core/interfaces/executor.py."""

    def __init__(self, config: EngineConfig, registry: Registry, compilers: Compilers | None = None) -> None:
        """compilers: of kernels that this machine has not compiled yet"""
        self._compilers = compilers
        self.timeline: list[tuple[str, float]] = []
        self._clock = time.perf_counter()
        choices = Choices(config, registry)
        self.choices = choices.told
        self.model_path, self.model_config = str(choices.folder), choices.model_config
        self._phase("choose")
        if choices.device.type == "cuda":
            read_ahead()
        model, weight_bytes = self._load(config, registry.get("model", choices.architecture), choices)
        choices.fit_threads(weight_bytes)
        self._phase("load weights")
        budget = config.scheduler.max_num_batched_tokens or (2048 if choices.device.type == "cpu" else 8192)
        caches, kv_bytes = self._allocate(config, choices, model, budget)
        self._phase("allocate cache")
        self._start_runner(config, choices, model, caches, budget)
        self.vocab_size = int(self.model_config["vocab_size"])
        self.generates = bool(getattr(model, "generates", True))
        self.eos_token_ids = eos_token_ids(choices.folder, self.model_config)
        self.memory = {"weights": weight_bytes, "kv_cache": kv_bytes}
        overlap = config.scheduler.async_scheduling
        overlap = choices.device.type == "cuda" if overlap is None else overlap
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

    def sample(self, masks: Bitmasks | None) -> StepTicket:
        return self.runner.sample(masks)

    def mask_buffer(self, lines: int, words: int) -> np.ndarray:
        return self.runner.batch.host_buffer(lines, words)

    def shutdown(self) -> None:
        """Give the memory back; a trace that still runs is written."""
        if self._profiling.is_running:
            log.info("the trace is in %s", self._profiling.stop())
        self.runner.caches.clear()

    def _load(self, config: EngineConfig, made_by: Any, choices: Choices) -> tuple[Any, int]:
        """The model with its weights, and their bytes."""
        with torch.inference_mode():
            model = made_by(choices.model_context())
            check_attention(
                choices.backend, model.cache_spec, config.cache.block_size, choices.dtype, choices.cache_dtype()
            )
            self._phase("build model")
            if config.model.load_format == "dummy":
                fill_dummy(model, config.model.seed)
            else:
                with ProgressLine("loading weights") as progress:
                    load_weights(model, model.weight_map, checkpoint_files(choices.folder), progress)
            # counted as stored: a method may repack them into tensors of another kind
            weights = {p.data_ptr(): p.nbytes for p in model.parameters()}
            finish_linears(model)
        return model, sum(weights.values())

    def _allocate(self, config: EngineConfig, choices: Choices, model: Any, budget: int) -> tuple[list[Any], int]:
        """A cache for every layer that has one, and their bytes. Sets num_blocks and max_model_len."""
        block_size, kv_dtype = config.cache.block_size, choices.cache_dtype()
        block_bytes = bytes_per_block(model.cache_spec, block_size, kv_dtype)
        used = 0
        if choices.device.type == "cuda":
            # activations of the largest step, by arithmetic: residual, hidden, gate and up, logits in float32
            hidden, inner = self.model_config["hidden_size"], self.model_config.get("intermediate_size", 0)
            # a captured step's are apart
            tokens = budget + self._graph_tokens(config, choices, model, budget)[0]
            activations = tokens * (6 * hidden + 3 * inner) * choices.dtype.itemsize
            activations += config.scheduler.max_num_seqs * self.model_config["vocab_size"] * 4 * 3
            used = torch.cuda.memory_reserved(choices.device) + activations + (1 << 30)
        self.num_blocks, self.max_model_len = count_blocks(
            config, block_bytes, choices.max_model_len, choices.device, used
        )
        allocate = choices.backend.allocate
        caches = [allocate(spec, self.num_blocks, block_size, kv_dtype) for spec in model.cache_spec]
        return caches, self.num_blocks * block_bytes

    def _start_runner(self, config: EngineConfig, choices: Choices, model: Any, caches: list[Any], budget: int) -> None:
        """The runner over the caches; on a GPU its kernels compiled and its graphs captured."""
        rows, device, deterministic = config.scheduler.max_num_seqs, choices.device, config.device.deterministic
        batch = InputBatch(rows, self.max_model_len, config.cache.block_size, device)
        backend = choices.backend
        self.runner = ModelRunner(model, backend, caches, batch, SamplingRows(rows, device), deterministic)
        if dispatch.on_gpu(batch.token_ids):
            largest, free = self._graph_tokens(config, choices, model, budget)
            shares = config.cache.enable_prefix_caching and not deterministic
            count = self.runner.warm_up(budget, largest, free, shares, self._phase, self._compilers)
            self.choices["graphs"] = f"{count} CUDA graphs of steps" if count else "none"
        elif dispatch.on_cpu(torch.empty(0, dtype=choices.dtype, device=device)):
            with ProgressLine("compiling kernels") as progress:
                dispatch.compile_cpu_kernels(progress)
            self._phase("compile kernels")
            if backend.capabilities.graph_capture and not config.device.enforce_eager:
                from core.runner.recordings import StepRecordings

                self.runner.graphs = StepRecordings(model, backend, caches, batch)
                self.choices["graphs"] = "steps of few decodes are recorded"

    def _graph_tokens(self, config: EngineConfig, choices: Choices, model: Any, budget: int) -> tuple[int, int]:
        """Of the largest captured step (0: none are), and up to which size padding costs less than launching does."""
        if not choices.backend.capabilities.graph_capture or config.device.enforce_eager:
            return 0, 0
        worth = MIXED_SIZES[-1]
        if not config.device.deterministic:
            flops = peak_flops(choices.device)
            worth = tokens_worth_capturing(model, len(model.cache_spec), self.model_config["vocab_size"], flops)
        wanted = config.device.max_graph_batch
        return largest_step(worth, budget) if wanted is None else min(wanted, budget), worth

    def _phase(self, name: str) -> None:
        now = time.perf_counter()
        self.timeline.append((name, now - self._clock))
        self._clock = now
