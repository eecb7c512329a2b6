"""Every option of the engine, once: typed, documented, validated.

The flags of `engine`, the table in docs/config.md and the keywords of `Engine(**options)` are all
made from these classes. The docstring behind a field is its help text. "auto" is resolved into a
new config (`dataclasses.replace`) when the engine is built, and the choice is logged.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_type_hints

from core.errors import ConfigError, nearest
from core.spellings import engine_options
from core.text.chat_template import read_template


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise ConfigError(message)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """What is served, and from where."""

    model: str = "demo"
    """A folder, a Hugging Face name, or `demo` for the bundled model."""
    served_model_name: tuple[str, ...] = ()
    """Names that clients may use for the model; empty: the model's own name."""
    tokenizer: str | None = None
    """Folder or name of the tokenizer; unset: the model's."""
    skip_tokenizer_init: bool = False
    """Load no tokenizer: prompts and outputs are token ids only."""
    revision: str | None = None
    """Branch, tag or commit of a Hugging Face model."""
    hf_token: str | None = None
    """Token for gated Hugging Face models; unset: the environment's HF_TOKEN."""
    download_dir: str | None = None
    """Folder for downloads; unset: the Hugging Face cache."""
    offline: bool = False
    """Use only what is on disk already; download nothing."""
    load_format: Literal["auto", "safetensors", "dummy"] = "auto"
    """Where weights come from; `dummy` fills them with seeded random numbers."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Precision of weights and activations; `auto`: the checkpoint's on a GPU, float32 on a CPU."""
    max_model_len: int | None = None
    """Most tokens of one request, prompt and output together; unset: what the model was made for."""
    pooling_type: Literal["auto", "last", "mean"] = "auto"
    """How a prompt's hidden states become its embedding; `auto`: what the model's 1_Pooling/config.json says, else `last`."""
    chat_template: str | None = None
    """A Jinja chat template, or the path of one; unset: the model's own."""
    trust_remote_code: bool = False
    """Never needed: no code from a checkpoint is run. Accepted so that scripts work, with a warning."""
    seed: int = 0
    """Seed of requests that bring none, and of dummy weights."""
    hf_overrides: Mapping[str, Any] = field(default_factory=dict)
    """Values that replace those of the model's config.json (JSON)."""

    def __post_init__(self) -> None:
        _require(bool(self.model), "model is empty; name a folder, a Hugging Face model, or 'demo'")
        _require(
            self.max_model_len is None or self.max_model_len > 0,
            f"max_model_len={self.max_model_len} must be positive; leave it unset for the model's own length",
        )
        if self.chat_template is not None:
            # before weights are loaded for minutes, and once: processes that are started again need no file
            object.__setattr__(self, "chat_template", read_template(self.chat_template))


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheConfig:
    """The KV cache: its size and its blocks."""

    block_size: int = 16
    """Tokens in a KV block."""
    gpu_memory_utilization: float = 0.9
    """Share of a GPU's memory for weights, activations and KV together, above 0 and up to 1."""
    kv_cache_memory_bytes: int | None = None
    """Bytes of KV cache; unset: what gpu_memory_utilization leaves, or cpu_kv_cache_bytes on a CPU."""
    cpu_kv_cache_bytes: int = 512 * 1024 * 1024
    """Bytes of KV cache on a CPU, at most; less is taken when fewer tokens can ever be needed."""
    num_blocks: int | None = None
    """Blocks in the pool, given instead of a size in bytes."""
    kv_cache_dtype: Literal["auto", "float32", "float16", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2"] = "auto"
    """Precision of stored keys and values; `auto`: the model's; `fp8` (e4m3) halves them, on a GPU."""
    enable_prefix_caching: bool = True
    """Keep the blocks of finished prompts and reuse them for requests that begin alike."""
    fit: bool = False
    """Shrink max_model_len, if it was left unset, until one request of that length fits the cache."""

    def __post_init__(self) -> None:
        _require(
            self.block_size > 0 and self.block_size & (self.block_size - 1) == 0,
            f"block_size={self.block_size} must be a power of two; 16 is a good choice",
        )
        _require(
            0 < self.gpu_memory_utilization <= 1,
            f"gpu_memory_utilization={self.gpu_memory_utilization} must be above 0 and at most 1",
        )
        _require(self.num_blocks is None or self.num_blocks > 0, f"num_blocks={self.num_blocks} must be positive")


@dataclass(frozen=True, kw_only=True, slots=True)
class SchedulerConfig:
    """How requests share a step."""

    max_num_seqs: int = 256
    """Most requests in a step."""
    max_num_batched_tokens: int | None = None
    """Most tokens in a step; unset: 2048 on a CPU, 8192 on a GPU."""
    scheduling_policy: Literal["fcfs", "priority"] = "fcfs"
    """Who is admitted first: by arrival, or by `priority` (lower first), then arrival."""
    enable_chunked_prefill: bool = True
    """Cut long prompts into pieces that fill what decodes leave of a step."""
    long_prefill_token_threshold: int = 0
    """Most tokens of one prompt in one step while others wait or run; 0: no bound but the budget."""
    max_queued_requests: int = 16384
    """Most requests that wait; one more is refused (HTTP 429)."""
    async_scheduling: bool | None = None
    """Plan a step while the device runs the one before; unset: on GPUs only."""

    def __post_init__(self) -> None:
        _require(self.max_num_seqs > 0, f"max_num_seqs={self.max_num_seqs} must be positive")
        _require(
            self.max_num_batched_tokens is None or self.max_num_batched_tokens > 0,
            f"max_num_batched_tokens={self.max_num_batched_tokens} must be positive",
        )
        _require(self.max_queued_requests > 0, "max_queued_requests must be positive")


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceConfig:
    """Where the model runs, and how."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: the GPU when there is one."""
    executor: str = "auto"
    """Where workers run; a plugin's name."""
    num_threads: int | None = None
    """Threads of the model on a CPU; unset: OMP_NUM_THREADS, or every core the process may use; fewer for a small model."""
    enforce_eager: bool = False
    """Capture no CUDA graphs, and record no steps on a CPU."""
    max_graph_batch: int | None = None
    """Most tokens of a step that is replayed from a CUDA graph; unset: 512, more for a model of small layers."""
    deterministic: bool = False
    """Give a request the same tokens whatever else is in its batch (fixed kernels; slower; on NVIDIA GPUs)."""
    profile_dir: str | None = None
    """Folder for traces of torch.profiler; POST /start_profile and /stop_profile begin and end one."""
    profile_steps: int = 0
    """Trace the first so many steps with work, into profile_dir."""

    def __post_init__(self) -> None:
        _require(
            self.max_graph_batch is None or self.max_graph_batch > 0,
            f"max_graph_batch={self.max_graph_batch} must be positive; enforce_eager captures no graphs",
        )
        _require(self.profile_steps >= 0, f"profile_steps={self.profile_steps} must be 0 or more")
        _require(
            self.profile_steps == 0 or self.profile_dir is not None,
            f"profile_steps={self.profile_steps} needs profile_dir, the folder that the trace goes to",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class PluginConfig:
    """Which plugins are used."""

    model_impl: str = "auto"
    """Architecture that reads the checkpoint; `auto`: the one that its config.json names."""
    attention_backend: str = "auto"
    """Attention backend by name."""
    quantization: str = "auto"
    """Quantization method by name; `auto`: what config.json says; `none`: off."""
    guided_backend: str = "auto"
    """Guided-decoding backend by name."""
    tool_call_parser: str = "auto"
    """Parser of tool calls by name; `none`: off."""
    reasoning_parser: str = "auto"
    """Parser of reasoning by name; `none`: off."""
    plugin: tuple[str, ...] = ()
    """KIND:NAME=DISTRIBUTION: whose NAME is meant when two distributions register it."""
    disable_plugin: tuple[str, ...] = ()
    """Plugins (entry-point names) that are not loaded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """All options of an engine, by section."""

    model: ModelConfig = field(default_factory=ModelConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)
    plugins: PluginConfig = field(default_factory=PluginConfig)

    @classmethod
    def from_options(cls, **options: Any) -> EngineConfig:
        """Build from flat keywords (`model=..., block_size=...`), in any spelling. Unknown names are ConfigErrors."""
        owners = option_owners()
        sections: dict[str, dict[str, Any]] = {}
        for name, value in engine_options(options).items():
            if name not in owners:
                raise ConfigError(f"option {name!r} is not known{nearest(name, owners)}")
            option = owners[name]
            if option.multiple and isinstance(value, str):
                value = (value,)
            if option.multiple:
                value = tuple(value)
            _require(
                not option.choices or value in option.choices,
                f"{name}={value!r} is not one of {', '.join(option.choices)}{nearest(str(value), option.choices)}",
            )
            sections.setdefault(option.section, {})[name] = value
        return cls(**{s.name: SECTIONS[s.name](**sections.get(s.name, {})) for s in dataclasses.fields(cls)})

    def options(self) -> dict[str, Any]:
        """The flat keywords that `from_options` takes."""
        return {name: getattr(getattr(self, o.section), name) for name, o in option_owners().items()}


SECTIONS: dict[str, Any] = {
    "model": ModelConfig,
    "cache": CacheConfig,
    "scheduler": SchedulerConfig,
    "device": DeviceConfig,
    "plugins": PluginConfig,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """One field of a section, as the command line and the docs see it."""

    name: str
    section: str
    type: Any
    """int, float, bool, str or dict; `None` is allowed when `default` is None."""
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    multiple: bool = False


def field_docs(cls: type) -> dict[str, str]:
    """Field name -> the docstring that stands behind it. Source files must be readable."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(body, ast.ClassDef)
    docs: dict[str, str] = {}
    name = None
    for node in body.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
        elif name and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            docs[name] = str(node.value.value)
            name = None
        else:
            name = None
    return docs


def section_options(section: str, cls: type) -> dict[str, Option]:
    """Field name -> Option for one dataclass (also used for the server's own options)."""
    hints, docs = get_type_hints(cls), field_docs(cls)
    options = {}
    for f in dataclasses.fields(cls):
        text = str(hints[f.name])
        choices = getattr(hints[f.name], "__args__", ()) if "Literal" in text else ()
        kind: Any = str
        if text.startswith("collections.abc.Mapping"):
            kind = dict
        elif hints[f.name] is bool or text == "bool | None":
            kind = bool
        elif hints[f.name] is int or text == "int | None":
            kind = int
        elif hints[f.name] is float or text == "float | None":
            kind = float
        default = f.default if f.default is not dataclasses.MISSING else f.default_factory()  # type: ignore[misc, operator]
        options[f.name] = Option(
            name=f.name,
            section=section,
            type=kind,
            default=default,
            help=docs[f.name],
            choices=tuple(choices),
            multiple=text.startswith("tuple"),
        )
    return options


@functools.cache
def option_owners() -> dict[str, Option]:
    """Every engine option by its flat name."""
    return {n: o for s, cls in SECTIONS.items() for n, o in section_options(s, cls).items()}
