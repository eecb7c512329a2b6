"""The attention backend "flashinfer": FlashInfer's kernels over the engine's own blocks.

Decodes and prompts each have wrappers of the library's, one for every kind of layer (sizes, window, soft cap); a
wrapper plans at the first layer of its kind in a step, on the host, and runs for all of them. Both read every key from
the cache, this step's too, which are written before.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from core.batch import ForwardBatch
from core.errors import ConfigError
from core.interfaces.attention import AttentionCapabilities, AttentionSpec
from plugins.attention.flashinfer.metadata import PagedRequests, paged_requests

MIN_VERSION = (0, 6)
MIN_CAPABILITY = (8, 0)
WORKSPACE_BYTES = 384 << 20
"""For the partial results of keys that are split. The library advises 128 MiB; large prompts over 64 query heads on a
GPU of 132 processors may want 140 (processors * 2 / key heads tiles of 128 rows, all query heads, in float32)."""
LAYOUT = "NHD"  # [block, token of the block, head, head_dim], as core/kernels writes it


@dataclass(slots=True)
class Wrapper:
    """One of the library's, and when the device has taken what it planned last."""

    library: Any
    copied: Any = None
    """torch.cuda.Event"""


@dataclass(slots=True)
class WrapperPair:
    """Used by turns: plan() writes into pinned memory that the device copies later, and while the host is a step
    ahead the step before may not have been copied yet."""

    wrappers: tuple[Wrapper, Wrapper]
    turn: int = 0

    def next(self) -> Wrapper:
        self.turn ^= 1
        return self.wrappers[self.turn]


@dataclass(slots=True)
class FlashInferPlan:
    """A step."""

    decodes: PagedRequests | None
    prompts: PagedRequests | None
    planned: dict[tuple[Any, ...], Wrapper] = field(default_factory=dict)
    """Wrappers that have planned this step, by kind of layer"""


class FlashInferBackend:
    name = "flashinfer"
    capabilities = AttentionCapabilities(
        devices=frozenset({"cuda"}),
        dtypes=frozenset({"bfloat16", "float16"}),
        head_dims=frozenset({64, 128, 256}),
        soft_cap=True,
        # the library's ALiBi makes its slopes out of the number of heads and takes no others
        alibi=False,
        # its wrappers can be captured (use_cuda_graph), but plan() has to run on the host before every replay, with
        # that step's lengths, and a step that the runner replays calls no backend
        graph_capture=False,
        fused_rope=True,
        # its splits depend on the whole batch
        fixed_order=False,
        cache_dtypes=frozenset({"bfloat16", "float16", "fp8_e4m3", "fp8_e5m2"}),
        casts_cache=False,
        # any would do for the kernels; these are what the tests cover
        block_sizes=frozenset({4, 8, 16, 32, 64, 128}),
    )

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._check_device(device)
        self._library = self._import()
        self._workspace = torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=device)  # the library wants zeros
        self._pairs: dict[tuple[Any, ...], WrapperPair] = {}

    # ---- what differs where the library itself is not there (tests)

    def _check_device(self, device: torch.device) -> None:
        """Raises ConfigError."""
        if device.type != "cuda":
            raise ConfigError(
                f"attention backend 'flashinfer' runs on NVIDIA GPUs, and the device is {device}; "
                "use --attention-backend auto"
            )
        capability = torch.cuda.get_device_capability(device)
        if torch.version.hip is not None or capability < MIN_CAPABILITY:
            raise ConfigError(
                f"attention backend 'flashinfer' needs an NVIDIA GPU of capability 8.0 or newer, this one has "
                f"{capability[0]}.{capability[1]}; use --attention-backend auto"
            )

    def _import(self) -> ModuleType:
        """Raises ConfigError if the library cannot work here."""
        try:
            library = importlib.import_module("flashinfer")
        except Exception as error:  # versions of its parts that do not fit, a CUDA library that is not there
            raise ConfigError(
                f"attention backend 'flashinfer': the package does not import ({type(error).__name__}: {error}); "
                "reinstall it with pip install 'backplane[flashinfer]', or use --attention-backend auto"
            ) from error
        version = str(library.__version__)
        if _release(version) < MIN_VERSION:
            raise ConfigError(
                f"attention backend 'flashinfer' needs flashinfer-python 0.6 or newer, {version} is installed; "
                "pip install --upgrade 'backplane[flashinfer]', or use --attention-backend auto"
            )
        _check_compiler(Path(str(library.__file__)).parent)
        return library

    def _write(
        self, key: torch.Tensor, value: torch.Tensor, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> None:
        from core.kernels.rope import write_cache

        write_cache(key, value, slots, keys, values)

    def _rotate_and_write(self, *arguments: Any) -> None:
        from core.kernels.rope import rope_and_cache

        rope_and_cache(*arguments)

    def _is_hopper(self) -> bool:
        return self.device.type == "cuda" and torch.cuda.get_device_capability(self.device)[0] == 9

    def _event(self) -> Any:
        return torch.cuda.Event()

    # ---- the contract

    def allocate(
        self, spec: AttentionSpec, num_blocks: int, block_size: int, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (num_blocks, block_size, spec.num_kv_heads, spec.head_dim)
        return torch.zeros(shape, dtype=dtype, device=self.device), torch.zeros(shape, dtype=dtype, device=self.device)

    def plan(self, batch: ForwardBatch) -> None:
        meta = batch.attention
        n, end = meta.num_decodes, meta.num_requests
        meta.state = FlashInferPlan(
            paged_requests(meta, 0, n) if n else None, paged_requests(meta, n, end) if n < end else None
        )

    def forward(
        self,
        spec: AttentionSpec,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cache: tuple[torch.Tensor, torch.Tensor],
        batch: ForwardBatch,
    ) -> torch.Tensor:
        self._write(key, value, batch.attention.slot_mapping, *cache)
        return self._attend(spec, query, cache, batch)

    def forward_rope(
        self,
        spec: AttentionSpec,
        qkv: torch.Tensor,
        cos_sin: torch.Tensor,
        cache: tuple[torch.Tensor, torch.Tensor],
        batch: ForwardBatch,
        q_weight: torch.Tensor | None = None,
        k_weight: torch.Tensor | None = None,
        eps: float = 1e-6,
    ) -> torch.Tensor:
        """As `forward`, from the projection: norm the heads (if weights are given), rotate, write, attend.

        qkv: [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim], changed in place;
        cos_sin: float32 [max_positions, rotary_dim] -> [num_tokens, num_heads, head_dim]
        """
        slots = batch.attention.slot_mapping
        self._rotate_and_write(qkv, cos_sin, batch.positions, slots, *cache, spec.num_heads, q_weight, k_weight, eps)
        heads = qkv.view(qkv.shape[0], spec.num_heads + 2 * spec.num_kv_heads, spec.head_dim)
        return self._attend(spec, heads[:, : spec.num_heads], cache, batch)

    def _attend(
        self, spec: AttentionSpec, query: torch.Tensor, cache: tuple[torch.Tensor, torch.Tensor], batch: ForwardBatch
    ) -> torch.Tensor:
        meta = batch.attention
        plan: FlashInferPlan = meta.state
        keys = cache[0]
        query = query if query.stride(-1) == 1 else query.contiguous()
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        n = meta.num_decodes
        if plan.decodes is not None:
            wrapper = self._planned("decode", plan, plan.decodes, spec, query, keys)
            wrapper.run(query[:n], cache, out=out[:n])
        if plan.prompts is not None:
            wrapper = self._planned("prompt", plan, plan.prompts, spec, query, keys)
            wrapper.run(query[n:], cache, out=out[n:])
        return out

    def _planned(
        self,
        part: str,
        plan: FlashInferPlan,
        requests: PagedRequests,
        spec: AttentionSpec,
        query: torch.Tensor,
        keys: torch.Tensor,
    ) -> Any:
        """The wrapper for this kind of layer, which has planned this step."""
        kind = (part, spec, query.dtype, keys.dtype)
        if kind in plan.planned:
            return plan.planned[kind].library
        if kind not in self._pairs:
            self._make_ready(spec, query.dtype, keys)
        wrapper = plan.planned[kind] = self._pairs[kind].next()
        self._plan(part, wrapper, requests, spec, query.dtype, keys)
        return wrapper.library

    def _make_ready(self, spec: AttentionSpec, dtype: torch.dtype, keys: torch.Tensor) -> None:
        """Wrappers of both parts, and by a plan their kernels, loaded or compiled: that is at start-up then, when the
        runner tries prompts. The first decode may be a user's. Raises ConfigError."""
        ends, one = torch.tensor([0, 1], dtype=torch.int32), torch.tensor([1], dtype=torch.int32)
        token = PagedRequests(ends, ends, torch.zeros(1, dtype=torch.int32, device=self.device), one)
        for part in ("decode", "prompt"):
            wrappers = (self._make(part, keys.dtype), self._make(part, keys.dtype))
            try:
                self._plan(part, wrappers[0], token, spec, dtype, keys)
            except (RuntimeError, OSError) as error:
                raise ConfigError(
                    f"attention backend 'flashinfer' cannot make ready its kernel for heads of {spec.head_dim}, window "
                    f"{spec.window}, soft cap {spec.soft_cap}, {dtype} over {keys.dtype}: {error}; see docs/plugins.md, "
                    "or use --attention-backend auto"
                ) from error
            self._pairs[part, spec, dtype, keys.dtype] = WrapperPair(wrappers)

    def _plan(
        self,
        part: str,
        wrapper: Wrapper,
        requests: PagedRequests,
        spec: AttentionSpec,
        dtype: torch.dtype,
        keys: torch.Tensor,
    ) -> None:
        if wrapper.copied is not None:
            wrapper.copied.synchronize()
        shared = {
            "page_size": keys.shape[1],
            # the library counts the tokens before the newest
            "window_left": -1 if spec.window is None else spec.window - 1,
            "logits_soft_cap": spec.soft_cap or 0.0,
            "sm_scale": spec.scale,
            "q_data_type": dtype,
            "kv_data_type": keys.dtype,
        }
        pages = (requests.block_indptr, requests.blocks, requests.last_block_len)
        heads = (spec.num_heads, spec.num_kv_heads, spec.head_dim)
        if part == "decode":
            wrapper.library.plan(*pages, *heads, **shared)
        else:
            wrapper.library.plan(requests.query_indptr, *pages, *heads, causal=True, **shared)
        wrapper.copied = self._event()
        wrapper.copied.record()

    def _make(self, part: str, cache_dtype: torch.dtype) -> Wrapper:
        # named: what the library's "auto" means changes with its version, and cuDNN may be among it
        if part == "decode":
            # tensor cores: any number of query heads in a group; the kernel is the one for prompts, compiled once
            made = self._library.BatchDecodeWithPagedKVCacheWrapper(
                self._workspace, LAYOUT, use_tensor_cores=True, backend="fa2"
            )
        else:
            # FlashAttention 3 is for Hopper, and takes keys of 8 bits for queries of 8 bits alone
            kernels = "fa3" if self._is_hopper() and cache_dtype.itemsize == 2 else "fa2"
            made = self._library.BatchPrefillWithPagedKVCacheWrapper(self._workspace, LAYOUT, backend=kernels)
        return Wrapper(made)


def _release(version: str) -> tuple[int, int]:
    major, minor = (version.split("+")[0].split(".") + ["0"])[:2]
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else MIN_VERSION


def _check_compiler(package: Path) -> None:
    """The library compiles a kernel when it is first used, unless it comes compiled. Raises ConfigError if neither."""
    if importlib.util.find_spec("flashinfer_jit_cache") is not None:
        return
    if any((package / "data" / "aot").glob("batch_prefill_*/*.so")):
        return
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    has_nvcc = shutil.which("nvcc") is not None or Path(home, "bin", "nvcc").exists()
    if has_nvcc and shutil.which("ninja") is not None:
        return
    raise ConfigError(
        "attention backend 'flashinfer' compiles its kernels when they are first used, which takes nvcc and ninja, and "
        f"{'ninja' if has_nvcc else 'nvcc'} is not here; install it, or the package flashinfer-jit-cache with the "
        "kernels ready (docs/plugins.md), or use --attention-backend auto"
    )
