"""Spellings that vLLM has used, as data: what each becomes here."""

from __future__ import annotations

ALIASES: dict[str, str] = {
    "max-seq-len": "max-model-len",
    "max-num-tokens": "max-num-batched-tokens",
    "guided-decoding-backend": "guided-backend",
    "tokenizer-path": "tokenizer",
    "model-path": "model",
    "cache-dir": "download-dir",
    "num-gpu-blocks-override": "num-blocks",
    "kv-cache-memory": "kv-cache-memory-bytes",
    "swap-model-name": "served-model-name",
    "uvicorn-log-level": "log-level",
    "priority-policy": "scheduling-policy",
    "enable-log-requests": "access-log",
}
"""Other spelling -> option."""

VALUES: dict[str, dict[str, str]] = {
    "dtype": {"half": "float16", "float": "float32", "fp16": "float16", "bf16": "bfloat16"},
    "load-format": {"pt": "auto"},
    "pooling-type": {"LAST": "last", "MEAN": "mean"},
    "kv-cache-dtype": {"fp16": "float16", "bf16": "bfloat16"},
}
"""Option -> other spellings of its values."""

WITHOUT_EFFECT: dict[str, str] = {
    "disable-log-requests": "requests are not logged unless --access-log is given",
    "disable-log-stats": "statistics are at /metrics and never in the log",
    "enable-metrics": "metrics are always at /metrics",
    "enable-auto-tool-choice": "tool choice needs no switch",
    "use-v2-block-manager": "there is one block manager",
    "disable-custom-all-reduce": "there is no custom all-reduce",
    "disable-frontend-multiprocessing": "the engine always has a process of its own",
    "swap-space": "preempted requests are computed again; nothing is swapped",
    "cpu-offload-gb": "weights are not offloaded",
    "task": "a model generates and embeds at once",
    "runner": "a model generates and embeds at once",
    "convert": "a model generates and embeds at once",
    "worker-use-ray": "there is one worker",
    "use-tqdm-on-load": "loading shows no bar in a pipe",
}
"""Accepted with a warning: option -> why nothing changes."""

ONLY: dict[str, tuple[str, str]] = {
    "tensor-parallel-size": ("1", "one device serves a model"),
    "pipeline-parallel-size": ("1", "one device serves a model"),
    "data-parallel-size": ("1", "one engine runs in a server"),
    "api-server-count": ("1", "one server process runs"),
}
"""Options with one value so far: option -> (value, why)."""

REFUSED: dict[str, str] = {
    "enable-lora": "LoRA adapters are not there yet",
    "speculative-config": "speculative decoding is not there yet",
    "speculative-model": "speculative decoding is not there yet",
}
