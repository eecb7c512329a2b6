"""Names that vLLM has used for options, as data, and what each becomes here.

The command line reads these tables (server/cli/spellings.py), and so does whatever takes options as keywords:
`LLM(model, tensor_parallel_size=1, swap_space=4)` works as it did there.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Ignored:
    """An option that is accepted and does nothing."""

    why: str
    takes_value: bool = True
    """Whether a value follows on the command line; a flag may be followed by true or false all the same."""


@dataclass(frozen=True, slots=True)
class Preferred:
    """What a value means where a package is installed; elsewhere it is as VALUES says."""

    value: str
    module: str
    install: str


NAMES: dict[str, str] = {
    "model-path": "model",
    "model-tag": "model",
    "tokenizer-path": "tokenizer",
    "served-model-names": "served-model-name",
    "swap-model-name": "served-model-name",
    "cache-dir": "download-dir",
    "max-seq-len": "max-model-len",
    "max-num-tokens": "max-num-batched-tokens",
    "max-num-requests": "max-num-seqs",
    "num-gpu-blocks-override": "num-blocks",
    "kv-cache-memory": "kv-cache-memory-bytes",
    "priority-policy": "scheduling-policy",
    "guided-decoding-backend": "guided-backend",
    "structured-outputs-backend": "guided-backend",
    "structured-outputs-config.backend": "guided-backend",
    "attention-config.backend": "attention-backend",
    "distributed-executor-backend": "executor",
    "max-cudagraph-capture-size": "max-graph-batch",
    "hf-config-overrides": "hf-overrides",
    "pooler-config.pooling-type": "pooling-type",
}
"""Other spelling -> option."""

VALUES: dict[str, dict[str, str]] = {
    "dtype": {"half": "float16", "float": "float32", "fp16": "float16", "bf16": "bfloat16"},
    "load-format": {"pt": "auto", "hf": "auto", "fastsafetensors": "safetensors", "runai_streamer": "safetensors"},
    "pooling-type": {"LAST": "last", "MEAN": "mean"},
    "kv-cache-dtype": {"fp16": "float16", "bf16": "bfloat16"},
    "model-impl": {"vllm": "auto"},
    "executor": {"uni": "in_process", "mp": "auto"},
    "quantization": {"None": "auto"},
    "guided-backend": {"guidance": "llguidance"},
    "attention-backend": {
        "FLASH_ATTN": "auto",
        "FLASHINFER": "auto",
        "XFORMERS": "auto",
        "TRITON_ATTN": "triton",
        "TRITON_ATTN_VLLM_V1": "triton",
        "TORCH_SDPA": "torch",
        "CPU_ATTN": "torch",
    },
    "tool-call-parser": {
        "openai": "gpt_oss",
        "glm45": "glm4",
        "llama4_pythonic": "pythonic",
        "llama4_json": "llama3_json",
        "qwen3_xml": "qwen3_coder",
    },
    "reasoning-parser": {"openai_gptoss": "gpt_oss", "mistral": "magistral"},
}
"""Option -> other spellings of its values."""

PREFERRED: dict[str, dict[str, Preferred]] = {
    "attention-backend": {
        "FLASH_ATTN": Preferred("flash_attn", "flash_attn", "pip install --no-build-isolation 'backplane[flash-attn]'"),
        "FLASHINFER": Preferred("flashinfer", "flashinfer", "pip install 'backplane[flashinfer]'"),
    },
}
"""Option -> spellings of its values that name what is not always installed."""

_STEPS = "every step is planned anew, while the device computes the one before"
_LORA = "it belongs to LoRA adapters, which are not there yet"
_IMAGES = "it belongs to images, which are not there yet"
_GRAPHS = "steps of up to --max-graph-batch tokens are captured, whatever their lengths"

IGNORED: dict[str, Ignored] = {
    "additional-config": Ignored("there is nothing that it could set"),
    "allowed-local-media-path": Ignored(_IMAGES),
    "calculate-kv-scales": Ignored("the cache needs no scales", False),
    "code-revision": Ignored("no code from a checkpoint is run"),
    "collect-detailed-traces": Ignored("a span has every figure that is known"),
    "compilation-config": Ignored("nothing is compiled by torch.compile"),
    "config-format": Ignored("config.json is read, whatever its writer"),
    "convert": Ignored("a model generates and embeds at once"),
    "cpu-offload-gb": Ignored("weights are not offloaded"),
    "cuda-graph-sizes": Ignored(_GRAPHS),
    "cudagraph-capture-sizes": Ignored(_GRAPHS),
    "disable-cascade-attn": Ignored("a prefix that requests share is read once where that is faster", False),
    "disable-chunked-mm-input": Ignored(_IMAGES, False),
    "disable-custom-all-reduce": Ignored("there is no custom all-reduce", False),
    "disable-hybrid-kv-cache-manager": Ignored("there is one cache manager", False),
    "disable-log-requests": Ignored("requests are not logged unless access_log is set", False),
    "disable-log-stats": Ignored("statistics are at /metrics and never in the log", False),
    "disable-logprobs-during-spec-decoding": Ignored("log probabilities are given whenever they are asked for", False),
    "disable-mm-preprocessor-cache": Ignored(_IMAGES, False),
    "enable-expert-parallel": Ignored("mixtures of experts are not there yet", False),
    "enable-lora-bias": Ignored(_LORA, False),
    "enable-mm-embeds": Ignored(_IMAGES, False),
    "engine-use-ray": Ignored("the engine always has a process of its own", False),
    "fully-sharded-loras": Ignored(_LORA, False),
    "guided-decoding-disable-additional-properties": Ignored("schemas hold as they are written", False),
    "guided-decoding-disable-any-whitespace": Ignored("guided_whitespace_pattern says it for one request", False),
    "guided-decoding-disable-fallback": Ignored("a backend that is named is never replaced by another", False),
    "ignore-patterns": Ignored("safetensors alone are downloaded"),
    "interleave-mm-strings": Ignored(_IMAGES, False),
    "kv-sharing-fast-prefill": Ignored("no served model shares its cache between layers", False),
    "limit-mm-per-prompt": Ignored(_IMAGES),
    "logits-processor-pattern": Ignored("requests cannot name code"),
    "long-lora-scaling-factors": Ignored(_LORA),
    "lora-dtype": Ignored(_LORA),
    "lora-extra-vocab-size": Ignored(_LORA),
    "max-context-len-to-capture": Ignored(_GRAPHS),
    "max-cpu-loras": Ignored(_LORA),
    "max-logprobs": Ignored("a request may ask for 20"),
    "max-long-partial-prefills": Ignored("prompts share what decodes leave of a step, in order"),
    "max-lora-rank": Ignored(_LORA),
    "max-loras": Ignored(_LORA),
    "max-num-partial-prefills": Ignored("prompts share what decodes leave of a step, in order"),
    "max-parallel-loading-workers": Ignored("weights are mapped, and loaded one by one"),
    "max-seq-len-to-capture": Ignored(_GRAPHS),
    "mm-encoder-tp-mode": Ignored(_IMAGES),
    "mm-processor-cache-gb": Ignored(_IMAGES),
    "mm-processor-kwargs": Ignored(_IMAGES),
    "model-loader-extra-config": Ignored("safetensors need none"),
    "multi-step-stream-outputs": Ignored(_STEPS, False),
    "num-lookahead-slots": Ignored("speculative decoding is not there yet"),
    "num-scheduler-steps": Ignored(_STEPS),
    "optimization-level": Ignored("nothing is compiled by torch.compile"),
    "prefix-caching-hash-algo": Ignored("one strong hash is used"),
    "ray-workers-use-nsight": Ignored("there is one worker", False),
    "runner": Ignored("a model generates and embeds at once"),
    "scheduler-delay-factor": Ignored("a prompt is admitted as soon as a step has room"),
    "show-hidden-metrics-for-version": Ignored("no metric is hidden"),
    "swap-space": Ignored("preempted requests are computed again; nothing is swapped"),
    "task": Ignored("a model generates and embeds at once"),
    "tokenizer-pool-extra-config": Ignored("prompts are tokenized off the event loop already"),
    "tokenizer-pool-size": Ignored("prompts are tokenized off the event loop already"),
    "tokenizer-pool-type": Ignored("prompts are tokenized off the event loop already"),
    "use-tqdm-on-load": Ignored("a bar shows on a terminal alone", False),
    "use-v2-block-manager": Ignored("there is one block manager", False),
    "worker-cls": Ignored("--executor says where the model runs"),
    "worker-use-ray": Ignored("there is one worker", False),
}
"""Accepted with a warning: option -> why nothing changes."""

ONLY: dict[str, tuple[str, str]] = {
    "tensor-parallel-size": ("1", "one device serves a model"),
    "pipeline-parallel-size": ("1", "one device serves a model"),
    "data-parallel-size": ("1", "one engine runs in a server"),
    "decode-context-parallel-size": ("1", "one device serves a model"),
    "nnodes": ("1", "one host serves a model"),
    "preemption-mode": ("recompute", "nothing is swapped"),
    "tokenizer-mode": ("auto", "there is one reader of tokenizers"),
}
"""Options with one value so far: option -> (value, why)."""

_SPECULATION = "speculative decoding is not there yet"

REFUSED: dict[str, str] = {
    "disable-sliding-window": "the model would answer otherwise than it was made to; lower max_model_len instead",
    "enable-lora": "LoRA adapters are not there yet",
    "enable-prompt-adapter": "prompt adapters are not there yet",
    "enable-prompt-embeds": "prompts are text or token ids",
    "enable-return-routed-experts": "mixtures of experts are not there yet",
    "enable-sleep-mode": "an engine cannot sleep yet; stop it and start it again",
    "hf-config-path": "config.json is read from the model's own folder; hf_overrides replaces its values",
    "kv-events-config": "block events are not published yet",
    "kv-transfer-config": "blocks do not leave their engine yet",
    "logits-processors": "logits processors from outside are not there yet",
    "override-generation-config": "give a folder with the generation_config.json that you want",
    "override-pooler-config": "use pooling_type",
    "pooler-config": "use pooling_type",
    "qlora-adapter-name-or-path": "LoRA adapters are not there yet",
    "scheduler-cls": "the scheduler is not a plugin; scheduling_policy chooses between policies",
    "speculative-config": _SPECULATION,
    "speculative-model": _SPECULATION,
    "num-speculative-tokens": _SPECULATION,
    "tokenizer-revision": "the tokenizer comes with the model's revision; or give --tokenizer a folder",
    "worker-extension-cls": "the worker takes no extensions; register an executor instead (docs/plugins.md)",
}
"""Would change answers, or what is kept, and is not there: option -> why, or what to do instead."""

UNSET = (None, False, "", "none", "None")


def read_value(option: str, spelling: str, known: Mapping[str, str]) -> tuple[str, str | None]:
    """-> the value that a spelling means here, and what to warn of. known: other spellings of the option's values."""
    value = known.get(spelling, spelling)
    preferred = PREFERRED.get(option, {}).get(spelling)
    if preferred is None:
        return value, None
    if find_spec(preferred.module) is not None:
        return preferred.value, None
    return value, f"{spelling} means {value!r} here, {preferred.module} is not installed ({preferred.install})"


def engine_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords under any spelling -> the keywords of `EngineConfig.from_options`. Unknown ones pass through.

    Raises ConfigError for what is refused; warns of what has no effect, unless it was switched off anyway.
    """
    result: dict[str, Any] = {}
    overrides: dict[str, Any] = {}
    spelled: dict[str, str] = {}
    for keyword, value in options.items():
        name = keyword.replace("_", "-")
        if name in IGNORED:
            if value not in UNSET and value != 0:
                warnings.warn(f"{keyword}={value!r} has no effect: {IGNORED[name].why}", stacklevel=4)
        elif name in ONLY:
            allowed, why = ONLY[name]
            if value is not None and str(value) != allowed:
                raise ConfigError(f"{keyword}={value!r}: only {allowed} is possible so far ({why})")
        elif name in REFUSED:
            if value not in UNSET and value != 0:
                raise ConfigError(f"{keyword}={value!r}: {REFUSED[name]}")
        elif name in ("rope-scaling", "rope-theta"):
            if value is not None:
                overrides[name.replace("-", "_")] = value
        else:
            option = NAMES.get(name, name)
            known = VALUES.get(option, {})
            key = option.replace("-", "_")
            if key in spelled:
                raise ConfigError(f"{spelled[key]} and {keyword} are the same option; give one of them")
            spelled[key] = keyword
            if value is None:
                continue  # unset, as where the default has another name
            if isinstance(value, str):
                value, warning = read_value(option, value, known)
                if warning:
                    warnings.warn(f"{keyword}: {warning}", stacklevel=4)
            result[key] = value
    if overrides:
        result["hf_overrides"] = {**overrides, **(result.get("hf_overrides") or {})}
    return result
