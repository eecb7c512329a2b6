"""The least time that a benchmark could have taken on this device: its bytes over bandwidth, its FLOPs over rate."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from core import Engine


@dataclass(frozen=True, slots=True)
class Work:
    """`batch` requests together, each of `input_len` prompt tokens and `output_len` new ones; so often, in turn."""

    batch: int
    input_len: int
    output_len: int
    turns: float = 1.0


def floor_figures(engine: Engine, work: Work, seconds: float) -> dict[str, float]:
    """The floor of `work`, what share of it `seconds` reached, and the two ceilings it is made from, measured here.

    The sum of: the prompts' matrices; those of each decode step, or the weights read once for it, whichever takes longer;
    the keys and values that decodes read. Attention among prompts, sampling and the rest cost nothing.
    """
    copy_gb_s, matmul_tflop_s = _ceilings(engine)
    bandwidth, rate = copy_gb_s * 1e9, matmul_tflop_s * 1e12
    item, matrix_bytes, head_bytes = _matrices(engine)
    layers, head = (matrix_bytes - head_bytes) / item, head_bytes / item
    ready = engine.ready
    kv_token = ready.memory["kv_cache"] / (ready.num_blocks * ready.block_size)
    prompts_s = work.batch * (2 * layers * work.input_len + 2 * head) / rate
    steps = work.output_len - 1
    step_s = max(matrix_bytes / bandwidth, 2 * (layers + head) * work.batch / rate)
    keys_s = work.batch * steps * (work.input_len + work.output_len / 2) * kv_token / bandwidth
    floor_s = work.turns * (prompts_s + steps * step_s + keys_s)
    return {
        "floor_s": floor_s,
        "floor_share": floor_s / seconds,
        "copy_gb_per_s": copy_gb_s,
        "matmul_tflop_per_s": matmul_tflop_s,
    }


def _matrices(engine: Engine) -> tuple[int, float, float]:
    """Bytes of a number, of all weights that a token is multiplied with, and of the head among them."""
    config: dict[str, Any] = json.loads((Path(engine.ready.model_path) / "config.json").read_text())
    config = {**config, **engine.config.model.hf_overrides}
    item = _dtype(engine).itemsize
    table = item * config["vocab_size"] * config["hidden_size"]
    # an embedding of its own is looked up, not multiplied
    return item, engine.ready.memory["weights"] - (0 if config.get("tie_word_embeddings") else table), table


def _dtype(engine: Engine) -> torch.dtype:
    import torch

    chosen = engine.config.model.dtype
    name = engine.ready.choices.get("dtype", chosen).partition(" ")[0] if chosen == "auto" else chosen
    return getattr(torch, name)  # type: ignore[no-any-return]


def _ceilings(engine: Engine) -> tuple[float, float]:
    """GB/s of a copy, read and written; TFLOP/s of a matrix product in the model's type."""
    import torch

    on_gpu = engine.ready.choices.get("device", "cpu").startswith("cuda")
    device = torch.device("cuda" if on_gpu else "cpu")
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    source = torch.ones((256 if on_gpu else 64) << 20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_s = _best_s(lambda: target.copy_(source), wait)
    n = 8192 if on_gpu else 768
    a = torch.randn(n, n, device=device).to(_dtype(engine))
    product = torch.empty_like(a)
    matmul_s = _best_s(lambda: torch.mm(a, a, out=product), wait)
    return 2 * source.nbytes / copy_s / 1e9, 2 * n**3 / matmul_s / 1e12


def _best_s(run: Callable[[], object], wait: Callable[[], object], repeats: int = 12) -> float:
    seconds = []
    for _ in range(repeats):
        wait()
        begin = time.perf_counter()
        run()
        wait()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)
