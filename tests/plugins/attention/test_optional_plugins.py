"""Plugins whose package is not installed: what the list, a choice and vLLM's spellings say; and layers, blocks and types
that a backend does not take, refused before a weight is read."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from click.testing import CliRunner

from core import Engine, EngineConfig, spellings
from core import registry as registry_module
from core.config import PluginConfig
from core.errors import ConfigError, PluginError
from core.executor.attention_check import check_attention
from core.interfaces.attention import AttentionSpec
from core.registry import load_registry
from plugins.attention.flash_attn.backend import FlashAttnBackend
from plugins.attention.flashinfer.backend import FlashInferBackend
from plugins.attention.torch.backend import TorchBackend
from server.cli.main import cli

PACKAGES = {"flashinfer": ("flashinfer", "flashinfer"), "flash_attn": ("flash_attn", "flash-attn")}
"""Backend -> module, extra"""


@pytest.fixture(params=PACKAGES)
def backend(request) -> str:
    return request.param


@pytest.fixture
def installed(monkeypatch):
    """installed(module, True or False): as if it were, or were not."""

    def pretend(module: str, there: bool) -> None:
        def find(name: str) -> object:
            return (object() if there else None) if name == module else find_spec(name)

        monkeypatch.setattr(registry_module, "find_spec", find)
        monkeypatch.setattr(spellings, "find_spec", find)

    return pretend


def test_the_list_says_what_is_missing(backend, installed):
    module, extra = PACKAGES[backend]
    installed(module, False)
    rows = json.loads(CliRunner().invoke(cli, ["plugins", "list", "--json"]).stdout)
    states = {r["name"]: r["state"] for r in rows if r["kind"] == "attention_backend"}
    assert states["torch"] == "ready"
    assert states[backend].startswith(f"not usable here: needs {module}, not installed here: pip install ")
    assert f"'backplane[{extra}]'" in states[backend]
    asked = CliRunner().invoke(cli, ["plugins", "list", "--attention-backend", backend])
    assert asked.exit_code == 0 and "not usable here" in asked.stdout
    checked = CliRunner().invoke(cli, ["plugins", "check", "backplane"])
    assert f"warning  attention_backend {backend} " in checked.stdout and "0 broken" in checked.stdout


def test_a_choice_of_it_names_the_package(backend, installed, checkpoint):
    module, extra = PACKAGES[backend]
    installed(module, False)
    with pytest.raises(PluginError, match=rf"'{backend}' .* needs {module}, not installed here: .*\[{extra}\]") as info:
        load_registry(PluginConfig()).get("attention_backend", backend)
    assert "Traceback" not in str(info.value)
    with pytest.raises(PluginError, match=f"needs {module}"):
        Engine(
            str(checkpoint("llama")), skip_tokenizer_init=True, attention_backend=backend, enable_prefix_caching=False
        )


@pytest.mark.parametrize("needs", ["flash_attn", {"flash_attn": ""}, {1: "pip"}])
def test_needs_are_checked_as_they_are_registered(needs):
    with pytest.raises(PluginError, match="is not a dictionary, module -> how to install it"):
        registry_module._check_registered("x", "a.b:c", {"needs": needs})


@pytest.mark.parametrize("spelling", ["FLASHINFER", "FLASH_ATTN"])
def test_spellings_of_vllm(spelling, installed):
    module, extra = PACKAGES[spelling.lower()]
    installed(module, False)
    with pytest.warns(UserWarning, match=rf"{spelling} means 'auto' here, {module} is not installed \(.*\[{extra}\]"):
        config = EngineConfig.from_options(model="m", attention_backend=spelling)
    assert config.plugins.attention_backend == "auto"
    installed(module, True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = EngineConfig.from_options(model="m", attention_backend=spelling)
    assert config.plugins.attention_backend == spelling.lower()


def test_spellings_of_vllm_on_the_command_line(installed, backend):
    module, _ = PACKAGES[backend]
    installed(module, False)
    done = CliRunner().invoke(cli, ["plugins", "list", f"--attention-backend={backend.upper()}"])
    assert done.exit_code == 0, done.output
    assert f"warning: --attention-backend: {backend.upper()} means 'auto' here, {module} is not" in done.stderr
    installed(module, True)
    done = CliRunner().invoke(cli, ["plugins", "list", f"--attention-backend={backend.upper()}"])
    assert "means 'auto'" not in done.stderr
    row = next(line for line in done.stdout.splitlines() if line.startswith(f"attention_backend  {backend} "))
    assert "selected" in row or "broken" in row


PLAIN = AttentionSpec(32, 8, 128, 128**-0.5)
BF16 = torch.bfloat16
REFUSED = [
    (FlashInferBackend, {"head_dim": 80}, {}, "does not take heads of 80, as this model has, only 64, 128, 256; use"),
    (FlashInferBackend, {"alibi_slopes": (1.0,)}, {}, "takes no ALiBi slopes"),
    (
        FlashInferBackend,
        {},
        {"block_size": 256},
        "block_size=256, only 4, 8, 16, 32, 64, 128; use --block-size 128, or",
    ),
    (FlashInferBackend, {}, {"cache_dtype": torch.float16}, "keys and values as float16 for a model in bfloat16; use"),
    (FlashAttnBackend, {"head_dim": 20}, {"block_size": 256}, "heads of 20.*only multiples of 8 from 8 to 256"),
    (FlashAttnBackend, {}, {}, "block_size=16, only 256, 512, 1024; use --block-size 256, or another backend"),
    (FlashAttnBackend, {}, {"block_size": 256, "cache_dtype": torch.float16}, "use --kv-cache-dtype auto, or"),
]


@pytest.mark.parametrize(("backend", "layer", "options", "message"), REFUSED)
def test_what_a_backend_does_not_take(backend, layer, options, message):
    options = {"block_size": 16, "dtype": BF16, "cache_dtype": BF16, **options}
    with pytest.raises(ConfigError, match=f"attention backend '{backend.name}' .*{message}.*--attention-backend auto"):
        check_attention(backend, [PLAIN, replace(PLAIN, **layer)], **options)


def test_what_a_backend_takes():
    taken = [PLAIN, replace(PLAIN, window=100), replace(PLAIN, soft_cap=30.0), replace(PLAIN, head_dim=64)]
    check_attention(FlashInferBackend, taken, 16, BF16, BF16)
    check_attention(FlashInferBackend, taken, 16, BF16, torch.float8_e4m3fn)
    check_attention(FlashAttnBackend, [*taken, replace(PLAIN, alibi_slopes=(1.0,))], 256, BF16, BF16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"dtypes": frozenset({"bfloat16"})},
            r"does not take dtype torch.float32; it takes bfloat16: choose .* --dtype",
        ),
        ({"window": False}, "knows no sliding window, and this model has one of 24 tokens"),
        ({"head_dims": frozenset({64})}, "does not take heads of 16, as this model has, only 64"),
        ({"block_sizes": frozenset({32})}, "does not take block_size=16, only 32; use --block-size 32"),
    ],
)
def test_an_engine_refuses_before_it_reads_weights(change, message, checkpoint, tmp_path, monkeypatch):
    folder = shutil.copytree(checkpoint("mistral-window"), tmp_path / "model")
    for weights in folder.glob("*.safetensors*"):
        weights.write_bytes(b"no weights at all")
    options = dict(skip_tokenizer_init=True, attention_backend="torch", device="cpu")
    with pytest.raises(Exception) as info:
        Engine(str(folder), **options)
    assert "attention backend" not in str(info.value)  # the weights are what stops it
    monkeypatch.setattr(TorchBackend, "capabilities", replace(TorchBackend.capabilities, **change))
    with pytest.raises(ConfigError, match=message):
        Engine(str(folder), **options)
