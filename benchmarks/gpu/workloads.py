"""What every engine of a comparison serves: model shapes, seeded prompts of token ids, timing, floors, result lines.

Standard library alone: each engine's script imports it with that engine's own interpreter.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_MODEL_LEN = 20480
MAX_NUM_SEQS = 256

_LLAMA3 = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "torch_dtype": "bfloat16",
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": {
        **_LLAMA3,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rope_scaling": {**_LLAMA3_ROPE, "factor": 8.0},
        "tie_word_embeddings": False,
    },
    "llama-3.2-1b": {
        **_LLAMA3,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "rope_scaling": {**_LLAMA3_ROPE, "factor": 32.0},
        "tie_word_embeddings": True,
    },
    "qwen3-0.6b": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "hidden_act": "silu",
        "attention_bias": False,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
        "eos_token_id": 151645,
        "torch_dtype": "bfloat16",
    },
}
"""The published shapes; weights are random, and time does not depend on them."""
_FIRST_SPECIAL = 128000

# Timed runs of each workload; the median counts.
RUNS = {
    "ttft_b1": 5,
    "latency_b1": 3,
    "latency_b32": 3,
    "throughput_1k": 2,
    "mixed_256": 2,
    "sampled": 2,
    "long_prefill": 3,
    "shared_prefix": 2,
}


@dataclass(frozen=True)
class Request:
    prompt: list[int]
    output_len: int


@dataclass(frozen=True)
class Workload:
    name: str
    requests: list[Request]
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    prefix_caching: bool = False
    warm_requests: tuple[Request, ...] = ()
    """Served before each timed run: what fills the prefix cache."""

    @property
    def input_tokens(self) -> int:
        return sum(len(r.prompt) for r in self.requests)

    @property
    def output_tokens(self) -> int:
        return sum(r.output_len for r in self.requests)


def _draw(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(_FIRST_SPECIAL) for _ in range(count)]


def build(name: str, run: int = 0) -> Workload:
    """A run draws its own prompts, so that no cache serves a repeat; the lengths stay."""
    rng = random.Random(f"{name} {run}")
    sizes = {
        "ttft_b1": (1, 128, 1),
        "latency_b1": (1, 128, 256),
        "latency_b32": (32, 512, 128),
        "throughput_1k": (1000, 512, 128),
        "long_prefill": (4, 16384, 1),
    }
    if name in sizes:
        count, inputs, outputs = sizes[name]
        return Workload(name, [Request(_draw(rng, inputs), outputs) for _ in range(count)])
    if name in ("mixed_256", "sampled"):
        lengths = random.Random(256)
        pairs = [(lengths.randint(100, 1024), lengths.randint(100, 1024)) for _ in range(256)]
        requests = [Request(_draw(rng, n_in), n_out) for n_in, n_out in pairs]
        random_choice = {"temperature": 0.8, "top_p": 0.95, "top_k": 50} if name == "sampled" else {}
        return Workload(name, requests, **random_choice)  # type: ignore[arg-type]
    if name == "shared_prefix":
        prefix = _draw(rng, 2048)
        first, *others = (Request(prefix + _draw(rng, 64), 64) for _ in range(257))
        return Workload(name, others, prefix_caching=True, warm_requests=(first,))
    if name == "warmup":  # every kind of step once, so that nothing is compiled while the clock runs
        lengths = random.Random(1)
        requests = [Request(_draw(rng, lengths.randint(8, 1024)), lengths.randint(2, 48)) for _ in range(300)]
        return Workload(name, [*requests, Request(_draw(rng, 16384), 1)])
    raise ValueError(f"no workload {name!r}; there are {', '.join(RUNS)}")


# ---- floors


@dataclass(frozen=True)
class Ceilings:
    """What the device does at best, measured by ceilings.py."""

    copy_gb_s: float
    matmul_tflop_s: float


def matrix_parameters(shape: dict[str, Any]) -> tuple[int, int]:
    """(of the layers, of the head): weights that every token of a step is multiplied with."""
    hidden, dim = shape["hidden_size"], shape["head_dim"]
    heads, kv_heads = shape["num_attention_heads"], shape["num_key_value_heads"]
    layer = 2 * hidden * dim * (heads + kv_heads) + 3 * hidden * shape["intermediate_size"]
    return shape["num_hidden_layers"] * layer, hidden * shape["vocab_size"]


def floor_s(shape: dict[str, Any], work: Workload, ceilings: Ceilings) -> float:
    """No engine that computes in bf16 is faster. The sum of: the prompts' matrices and those of decodes, each by arithmetic
    or by reading the weights once a step, whichever takes longer; the keys and values that decodes read; attention among
    prompts. Where requests have to wait for others, prompts may share steps with decodes, and the first two become one.
    Sampling and the rest cost nothing.
    """
    layers, head = matrix_parameters(shape)
    rate, bandwidth = ceilings.matmul_tflop_s * 1e12, ceilings.copy_gb_s * 1e9
    count = len(work.requests)
    batch = min(MAX_NUM_SEQS, count)
    lengths = sorted((r.output_len for r in work.requests), reverse=True)
    steps = sum(lengths[::batch])  # of each group that runs together, its longest
    tokens = work.input_tokens + work.output_tokens
    known = len(work.warm_requests[0].prompt) // 64 * 64 if work.warm_requests else 0
    tokens -= (known - 64) * count if known else 0  # the shared prefix is there already
    # a request's first token comes of its prompt's step
    decode_s = 2.0 * (layers + head) * (work.output_tokens - count) / rate
    prompt_s = (2.0 * layers * (tokens - work.output_tokens) + 2.0 * head * count) / rate
    read_s = 2.0 * (layers + head) / bandwidth
    kv_token = 2 * 2 * shape["num_hidden_layers"] * shape["num_key_value_heads"] * shape["head_dim"]
    context = 0.0
    attended = 0.0
    for r in work.requests:
        own = len(r.prompt) - max(0, known - 64)
        context += (r.output_len - 1) * (own + r.output_len / 2)
        attended += own * (len(r.prompt) - own / 2)
    context += max(0, known - 64) * steps if known else 0
    flops_attention = 4.0 * shape["num_hidden_layers"] * shape["num_attention_heads"] * shape["head_dim"] * attended
    matrices_s = max(prompt_s, read_s) + max(decode_s, read_s * (steps - 1))
    if count > batch:
        matrices_s = max(prompt_s + decode_s, read_s * steps)
    return matrices_s + kv_token * context / bandwidth + flops_attention / rate


def load_ceilings(folder: Path) -> Ceilings | None:
    path = folder / "results.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    found = [line for line in lines if line.get("workload") == "ceilings"]
    return Ceilings(found[-1]["copy_gb_s"], found[-1]["matmul_tflop_s"]) if found else None


# ---- results


def out_folder() -> Path:
    """$OUT, or the working directory."""
    return Path(os.environ.get("OUT", "."))


def emit(record: dict[str, Any]) -> None:
    """One JSON line to the terminal and to results.jsonl."""
    line = json.dumps(record)
    print(line, flush=True)
    with (out_folder() / "results.jsonl").open("a") as file:
        file.write(line + "\n")


def write_model_dir(path: Path, shape: str) -> str:
    """A folder with nothing but config.json."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(SHAPES[shape], indent=1))
    return str(path)


def measure(name: str, serve: Callable[[Workload], int], shape: str, tags: dict[str, Any]) -> float:
    """Time `serve`, which returns the output tokens it made, and emit the line. -> median seconds"""
    seconds = []
    for run in range(RUNS[name]):
        work = build(name, run)
        if work.warm_requests:
            serve(dataclasses.replace(work, requests=list(work.warm_requests), warm_requests=()))
        start = time.perf_counter()
        made = serve(work)
        seconds.append(time.perf_counter() - start)
        if made != work.output_tokens:
            raise RuntimeError(f"{name}: {made} output tokens, and {work.output_tokens} were asked for")
    median = statistics.median(seconds)
    record = {**tags, "shape": shape, "workload": name, "median_s": round(median, 4)}
    record["runs_s"] = [round(s, 4) for s in seconds]
    record["output_tok_s"] = round(work.output_tokens / median, 1)
    record["total_tok_s"] = round((work.input_tokens + work.output_tokens) / median, 1)
    if (ceilings := load_ceilings(out_folder())) is not None:
        floor = floor_s(SHAPES[shape], work, ceilings)
        record |= {"floor_s": round(floor, 4), "floor_share": round(floor / median, 3)}
    emit(record)
    return median


def measure_all(names: list[str], serve: Callable[[Workload], int], shape: str, tags: dict[str, Any]) -> None:
    """Each workload in turn; after latency_b1 what a token of it takes behind the first."""
    first_s = None
    for name in names:
        median = measure(name, serve, shape, tags)
        first_s = median if name == "ttft_b1" else first_s
        if name == "latency_b1" and first_s is not None:
            token_ms = (median - first_s) / (build(name).output_tokens - 1) * 1e3
            record = {
                **tags,
                "shape": shape,
                "workload": "latency_b1.decode",
                "decode_ms_per_token": round(token_ms, 4),
            }
            if (ceilings := load_ceilings(out_folder())) is not None:
                record["floor_ms"] = round(2 * sum(matrix_parameters(SHAPES[shape])) / ceilings.copy_gb_s / 1e6, 4)
            emit(record)


def parse_workloads(text: str | None) -> list[str]:
    names = [n for n in (text or ",".join(RUNS)).split(",") if n]
    for name in names:
        build(name)  # ValueError for one that is not there
    return [n for n in RUNS if n in names]
