"""A real server process over a tiny random model: what is tested here is HTTP, not what the model says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}\n{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """config.json, a byte-level tokenizer and a chat template; weights are dummies."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the engine serves the model and the model serves the engine"] * 4, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": tokenizer.get_vocab_size(),
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": "float32",
        "hidden_act": "silu",
    }
    (folder / "config.json").write_text(json.dumps(config))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.5, "top_k": 40, "eos_token_id": 1}))
    return folder


class Server:
    """`serve()` in a process of its own."""

    def __init__(
        self, model: Path, engine: dict | None = None, server: dict | None = None, env: dict | None = None
    ) -> None:
        engine = {
            "model": str(model),
            "load_format": "dummy",
            "served_model_name": ("tiny", "also-tiny"),
            "num_threads": 1,
            "num_blocks": 2048,
            **(engine or {}),
        }
        code = (
            "import logging; logging.basicConfig(level=logging.INFO)\n"
            "from core.config import EngineConfig; from server.config import ServerConfig; from server.launch import serve\n"
            f"serve(EngineConfig.from_options(**{engine!r}), ServerConfig(**{ {'port': 0, **(server or {})}!r}))"
        )
        env = {**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
        )
        self.lines: list[str] = []
        self._url: str | None = None
        self._found = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._found.wait(60) or self._url is None:
            self.stop()
            raise AssertionError("the server did not start:\n" + self.output)
        self.url = self._url

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if match := re.search(r"(?:^serving .* on|ready in [\d.]+ s:) (\S+)", line):
                self._url = match[1]
                self._found.set()
        self._found.set()

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def metric(self, name: str) -> float:
        for line in httpx.get(f"{self.url}/metrics").text.splitlines():
            if line.startswith(name + "{"):
                return float(line.rsplit(" ", 1)[1])
        raise AssertionError(f"no metric {name}")

    def wait_idle(self, timeout_s: float = 10) -> None:
        """Until nothing runs or waits in the engine."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.metric("vllm:num_requests_running") == 0 and self.metric("vllm:num_requests_waiting") == 0:
                return
            time.sleep(0.05)
        raise AssertionError("the engine still has requests:\n" + self.output)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._reader.join(5)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture(scope="session")
def server(tiny_model: Path):
    running = Server(tiny_model, server={"max_body_bytes": 1_000_000})
    yield running
    running.stop()


@pytest.fixture(scope="session")
def demo_server(tiny_model: Path):
    """The demo model: what it says makes sense, so what reads its answers can be tested."""
    options = {"model": "demo", "load_format": "auto", "served_model_name": ("demo",), "num_blocks": 1024}
    running = Server(tiny_model, options)
    yield running
    running.stop()


@pytest.fixture(scope="session")
def keyed_server(tiny_model: Path):
    """A server that wants a key: `secret` or `another`."""
    running = Server(tiny_model, server={"api_key": ("secret", "another")})
    yield running
    running.stop()


@pytest.fixture(scope="session")
def narrow_server(tiny_model: Path):
    """A server of one row and one place in its queue."""
    running = Server(tiny_model, {"max_num_seqs": 1, "max_queued_requests": 1})
    yield running
    running.stop()


@pytest.fixture
def start_server(tiny_model: Path):
    """start_server(engine={...}, server={...}, env={...}) -> Server, stopped at the end."""
    yield from _starter(tiny_model)


@pytest.fixture(scope="module")
def start_module_server(tiny_model: Path):
    """As start_server, for a server that the tests of a module share."""
    yield from _starter(tiny_model)


def _starter(tiny_model: Path):
    started: list[Server] = []

    def start(engine: dict | None = None, server: dict | None = None, env: dict | None = None) -> Server:
        started.append(Server(tiny_model, engine, server, env))
        return started[-1]

    yield start
    for running in started:
        running.stop()
