"""Real checkpoints for every test: tiny random models that transformers writes, and a real tokenizer beside them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# several workers of pytest-xdist side by side: a thread each, or threads wait for others that have no core
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

TEXT = ["the quick brown fox jumps over the lazy dog. ", "hello world, how are you today? ", "0123456789 é ü 漢字 🙂 "]


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, special_tokens=["<|end|>"], show_progress=False
    )
    tokenizer.train_from_iterator(TEXT * 20, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))


SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"class": "Llama", "num_attention_heads": 8, "num_key_value_heads": 2},
    "llama3-scaling": {
        "class": "Llama",
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "llama-bias": {
        "class": "Llama",
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "attention_bias": True,
        "mlp_bias": True,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0},
    },
    "llama-yarn": {
        "class": "Llama",
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "mistral-window": {"class": "Mistral", "num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 24},
    "qwen2": {"class": "Qwen2", "num_attention_heads": 4, "num_key_value_heads": 2},
    "qwen2-window": {
        "class": "Qwen2",
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "use_sliding_window": True,
        "sliding_window": 20,
        "max_window_layers": 1,
    },
    "qwen3": {"class": "Qwen3", "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32},
}


PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "{name}"
version = "0.3"
[project.entry-points."backplane.plugins"]
{module} = "{module}"
[tool.setuptools]
py-modules = ["{module}"]
"""


@pytest.fixture(scope="session")
def install_package() -> Callable[..., Path]:
    """install_package(folder, name, source, name, source, ...) -> folder/site, with a stranger's distribution of one module
    for every name, built by pip.

    Their entry points have the modules' names: `name` with underscores.
    """

    def install(folder: Path, *names_and_sources: str) -> Path:
        projects = []
        for name, source in zip(names_and_sources[::2], names_and_sources[1::2], strict=True):
            module = name.replace("-", "_")
            project = folder / name
            project.mkdir()
            (project / "pyproject.toml").write_text(PROJECT.format(name=name, module=module))
            (project / f"{module}.py").write_text(source)
            projects.append(str(project))
        site = folder / "site"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
        subprocess.run([*command, "--target", str(site), *projects], check=True, capture_output=True)
        return site

    return install


@pytest.fixture(scope="session")
def write_package() -> Callable[[Path, str, str], None]:
    """write_package(site, name, source): what `install_package` leaves in its `site`, without pip, which takes two seconds."""

    def write(site: Path, name: str, source: str) -> None:
        module = name.replace("-", "_")
        (site / f"{module}.py").write_text(source)
        info = site / f"{module}-0.3.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.3\n")
        (info / "entry_points.txt").write_text(f"[backplane.plugins]\n{module} = {module}\n")

    return write


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """checkpoint(name) -> the folder of a tiny random model of that shape, written once."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            import torch
            import transformers

            shape = dict(SHAPES[name])
            family = shape.pop("class")
            torch.manual_seed(7)
            config = getattr(transformers, f"{family}Config")(
                vocab_size=384,
                hidden_size=64,
                intermediate_size=96,
                num_hidden_layers=2,
                max_position_embeddings=256,
                bos_token_id=None,
                eos_token_id=0,
                pad_token_id=None,
                initializer_range=0.2,
                **shape,
            )
            model = getattr(transformers, f"{family}ForCausalLM")(config)
            for parameter_name, parameter in model.named_parameters():
                if parameter_name.endswith(("bias", "norm.weight")):  # zeros and ones would hide a mistake
                    torch.nn.init.normal_(parameter.data, 1.0 if "norm" in parameter_name else 0.0, 0.2)
            folder = tmp_path_factory.mktemp(name)
            # small shards, so that reading an index is tested too
            model.save_pretrained(folder, max_shard_size="100KB" if name == "llama" else "5GB")
            write_tokenizer(folder, 384)
            made[name] = folder
        return made[name]

    return make
