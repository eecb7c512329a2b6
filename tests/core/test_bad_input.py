"""Checkpoints that are broken, in every way that a download, a disk or an editor breaks them, and disks that are full.

Each is a ModelError that names the file, what is wrong with it, and the way out; none is another exception.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from core import Engine, SamplingParams
from core.errors import ModelError

ROOT = Path(__file__).parents[2]
GOOD = ROOT / "plugins/sources/demo/data/draft"
QUERY = "model.layers.0.self_attn.q_proj.weight"
DOWN = "model.layers.0.mlp.down_proj.weight"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of a small checkpoint, to be broken."""
    shutil.copytree(GOOD, tmp_path / "model")
    return tmp_path / "model"


def answer(folder: Path) -> list[int]:
    """What it says when it is not broken."""
    with Engine(str(folder), num_blocks=16, max_model_len=128, num_threads=1) as engine:
        return engine.generate("Hello", SamplingParams(temperature=0, max_tokens=4))[0].outputs[0].token_ids


def refused(folder: Path) -> str:
    with pytest.raises(ModelError) as info, Engine(str(folder), num_blocks=16, max_model_len=128, num_threads=1):
        pass
    return str(info.value)


def configure(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


# ---- config.json and its neighbours


def test_a_folder_without_config(folder: Path):
    (folder / "config.json").unlink()
    said = refused(folder)
    assert str(folder) in said and "no config.json" in said and "folder of a Hugging Face checkpoint" in said


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize(
    "content", [b"", b"{not", b"\xff\xfe\x00", b"[]", b"3", b"[" * 200_000], ids=lambda c: repr(c[:6])
)
def test_a_config_that_is_no_json_object(folder: Path, name: str, content: bytes):
    (folder / name).write_bytes(content)
    said = refused(folder)
    assert str(folder / name) in said and "JSON" in said and "download it again" in said


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"architectures": ["FooForCausalLM"]}, "architecture FooForCausalLM of .* is not served .*install a plugin"),
        ({"architectures": ["LlamaForCasualLM"]}, "did you mean 'LlamaForCausalLM'"),
        ({"architectures": None}, "architecture none"),
        ({"architectures": []}, "architecture none"),
        ({"architectures": "LlamaForCausalLM"}, "'architectures' is 'LlamaForCausalLM', not a list"),
        ({"architectures": [3]}, "'architectures' is .3., not a list"),
        ({"hidden_size": None}, "'hidden_size' is None, not a positive integer"),
        ({"num_attention_heads": 0}, "'num_attention_heads' is 0"),
        ({"num_attention_heads": "4"}, "'num_attention_heads' is '4'"),
        ({"num_hidden_layers": 2.5}, "'num_hidden_layers' is 2.5"),
        ({"vocab_size": True}, "'vocab_size' is True"),
        ({"num_key_value_heads": 3}, "num_attention_heads=4 is no multiple of num_key_value_heads=3"),
        ({"intermediate_size": "wide"}, "'intermediate_size' is 'wide'"),
        ({"max_position_embeddings": -4}, "'max_position_embeddings' is -4"),
        ({"rms_norm_eps": "small"}, "'rms_norm_eps' is 'small', not a positive number"),
        ({"rope_theta": -1}, "'rope_theta' is -1"),
        ({"rope_parameters": "linear"}, "'rope_parameters' is 'linear', not an object"),
        ({"rope_parameters": {"rope_type": "wobbly"}}, "rope_type 'wobbly' is not supported .*llama3"),
        ({"quantization_config": "awq"}, "'quantization_config' is 'awq', not an object"),
        ({"quantization_config": {"quant_method": "zz"}}, "quantized with 'zz', and no plugin reads that"),
        ({"text_config": [1]}, "'text_config' is .1., not an object"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"eos_token_id": "</s>"}, "'eos_token_id' is '</s>', not a token id"),
    ],
)
def test_values_that_no_model_can_be_built_from(folder: Path, values: dict[str, Any], words: str):
    configure(folder, **values)
    with pytest.raises(ModelError, match=words), Engine(str(folder), load_format="dummy", num_blocks=128):
        pass


@pytest.mark.parametrize("key", ["intermediate_size", "rms_norm_eps", "vocab_size"])
def test_a_key_that_is_missing(folder: Path, key: str):
    config = json.loads((folder / "config.json").read_text())
    del config[key]
    (folder / "config.json").write_text(json.dumps(config))
    said = refused(folder)
    assert str(folder / "config.json") in said and repr(key) in said


def test_what_may_be_null(folder: Path):
    expected = answer(folder)
    configure(folder, text_config=None, rope_scaling=None, sliding_window=None, quantization_config=None)
    assert answer(folder) == expected


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_that_is_no_json(folder: Path, name: str):
    (folder / name).write_text("{")
    assert str(folder / name) in refused(folder)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"hidden_size": 64}, r"has shape \(4096, 128\) and config.json makes it \(4096, 64\)"),
        ({"num_hidden_layers": 5}, "lacks 18 tensors, the first is 'model.layers.3"),
        ({"num_hidden_layers": 2}, "model.layers.2.*no place for"),
    ],
)
def test_a_config_of_another_model(folder: Path, values: dict[str, Any], words: str):
    configure(folder, **values)
    with pytest.raises(ModelError, match=words), Engine(str(folder), num_blocks=16):
        pass


# ---- safetensors


WHOLE = (GOOD / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        WHOLE[:100],
        WHOLE[:1_000_000],
        WHOLE[:-1],
        WHOLE + b"more",
        b"\x93" * 5000,
        struct.pack("<Q", 2**60) + b"{}",
        b"<!doctype html>not found" * 50,
    ],
    ids=["empty", "header cut", "data cut", "last byte cut", "too long", "noise", "huge header", "web page"],
)
def test_a_file_that_is_no_safetensors(folder: Path, content: bytes):
    (folder / "model.safetensors").write_bytes(content)
    said = refused(folder)
    assert str(folder / "model.safetensors") in said and "download it again" in said


def test_a_git_lfs_pointer(folder: Path):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert "`git lfs pull`" in refused(folder)


def test_no_weights_at_all(folder: Path):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "holds no *.safetensors; convert" in refused(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: {**t, QUERY: t[QUERY][:-1].clone()}, [QUERY, "(127, 128)", "(128, 128)", "do not belong together"]),
        (lambda t: {**t, DOWN: t[DOWN].T.contiguous()}, [DOWN, "do not belong together"]),
        (lambda t: {**t, QUERY: t[QUERY].to(torch.int8)}, [QUERY, "int8", "quantized?"]),
        (lambda t: {k: v for k, v in t.items() if k != QUERY}, [QUERY, "lacks 1 tensors", "download it again"]),
        (lambda t: {**t, "model.wobble": torch.ones(2)}, ["'model.wobble'", "no place for"]),
    ],
    ids=["short", "transposed", "int8", "missing", "left over"],
)
def test_a_tensor_that_does_not_fit(folder: Path, change: Callable[[dict], dict], words: list[str]):
    save_file(change(load_file(GOOD / "model.safetensors")), folder / "model.safetensors")
    said = refused(folder)
    assert all(word in said for word in words), said


def shard(folder: Path) -> dict[str, str]:
    """Two shards and their index, which is returned."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    places = {name: FIRST if i < len(names) // 2 else SECOND for i, name in enumerate(names)}
    for file in (FIRST, SECOND):
        save_file({n: t for n, t in tensors.items() if places[n] == file}, folder / file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return places


def test_a_shard_that_is_gone(folder: Path):
    expected = answer(folder)
    shard(folder)
    assert answer(folder) == expected
    (folder / SECOND).unlink()
    said = refused(folder)
    assert INDEX in said and SECOND in said and "not there; download" in said
    (folder / INDEX).unlink()
    assert "lacks" in refused(folder)


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (lambda m: {"weight_map": {**m, QUERY: "model-00009-of-00002.safetensors"}}, "model-00009"),
        (lambda m: {"weight_map": {**m, "x": "../config.json"}}, "'../config.json', which is no file beside it"),
        (lambda m: {"weight_map": {**m, "x": "/etc/hostname"}}, "'/etc/hostname', which is no file beside it"),
        (lambda m: {"weight_map": {**m, "x": 3}}, "names 3"),
        (lambda m: {"weight_map": {}}, "names no files"),
        (lambda m: {"weight_map": None}, "not a safetensors index"),
        (lambda m: {}, "not a safetensors index"),
        (lambda m: [], "not a safetensors index"),
    ],
    ids=["no such file", "climbs", "absolute", "number", "empty", "null", "no map", "list"],
)
def test_an_index_that_names_what_is_not_there(folder: Path, index: Callable[[dict], Any], words: str):
    (folder / INDEX).write_text(json.dumps(index(shard(folder))))
    said = refused(folder)
    assert INDEX in said and words in said and "download" in said


def test_an_index_that_is_not_json(folder: Path):
    shard(folder)
    for content in (b"{", b"\xff", b"[" * 100_000):
        (folder / INDEX).write_bytes(content)
        assert "not a safetensors index" in refused(folder)


# ---- the disk, while a hub's files come


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of a model hub as a download asks for; `someone/model` is the checkpoint."""

    protocol_version = "HTTP/1.1"
    commit = "0" * 40
    cut_after: int | None = None
    """Bytes of the weights after which the connection ends."""

    def log_message(self, *args: Any) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        where = self.path.split("?")[0].strip("/").split("/")
        files = sorted(f for f in GOOD.iterdir() if f.is_file())
        if where[:4] == ["api", "models", "someone", "model"]:
            value: Any = {"id": "someone/model", "sha": self.commit, "siblings": [{"rfilename": f.name} for f in files]}
            if "tree" in where:
                value = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": f.name} for f in files]
            self.reply(200, json.dumps(value).encode())
        elif where[:2] == ["someone", "model"] and where[-1] in {f.name for f in files}:
            content = (GOOD / where[-1]).read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            self.reply(200, content, {"etag": etag, "x-repo-commit": self.commit})
        else:
            self.reply(404, b"{}", {"x-error-code": "RepoNotFound"})

    def reply(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"content-length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "GET":
            return
        cut = self.cut_after if len(content) > 1_000_000 else None
        try:
            self.wfile.write(content[:cut])
        except ConnectionError:
            self.close_connection = True
        self.close_connection |= cut is not None


DOWNLOAD = """
import resource, sys
from core.config import ModelConfig
from core.errors import ModelError
from plugins.sources.hub import HubSource
if int(sys.argv[2]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    print(HubSource().resolve(ModelConfig(model=sys.argv[3], download_dir=sys.argv[1])))
except ModelError as error:
    sys.exit(f"ModelError: {error}")
"""


@pytest.fixture
def hub():
    handler = type("ThisHub", (Hub,), {})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()

    def download(
        cache: Path, limit: int = 0, model: str = "someone/model", before: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_DISABLE_XET": "1"}
        environment.pop("HF_HUB_OFFLINE", None)
        command = [*before, sys.executable, "-c", DOWNLOAD, str(cache), str(limit), model]
        return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60)

    download.handler = handler  # type: ignore[attr-defined]
    yield download
    server.shutdown()
    server.server_close()
    thread.join(5)


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1, (done.stdout, done.stderr)
    return done.stderr.strip().splitlines()[-1]


def test_a_limit_on_file_sizes_stops_a_download(hub, tmp_path: Path):
    said = last_line(hub(tmp_path, limit=1_000_000))
    assert said.startswith("ModelError: ") and "File too large" in said
    assert "someone/model" in said and "set download_dir" in said
    # the same folder serves once there is room; nothing broken was left behind
    done = hub(tmp_path)
    assert done.returncode == 0 and "%" not in done.stderr, done.stderr  # no bars in a pipe
    assert answer(Path(done.stdout.strip())) == answer(GOOD)


def test_a_full_disk_stops_a_download(hub, tmp_path: Path):
    """On a real file system of one megabyte, in a mount namespace of its own."""
    mount = ("unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=1m none "$0" && exec "$@"', str(tmp_path))
    if not shutil.which("unshare") or subprocess.run([*mount, "true"], capture_output=True).returncode:
        pytest.skip("this system lets no one mount here; the limit on file sizes is tested all the same")
    said = last_line(hub(tmp_path, before=mount))
    assert said.startswith("ModelError: the disk is full while downloading") and "set download_dir" in said


def test_a_download_that_breaks_off(hub, tmp_path: Path):
    hub.handler.cut_after = 500_000
    said = last_line(hub(tmp_path))
    assert said.startswith("ModelError: ") and "someone/model" in said and "try again" in said
    hub.handler.cut_after = None
    assert hub(tmp_path).returncode == 0


def test_a_model_that_the_hub_does_not_have(hub, tmp_path: Path):
    said = last_line(hub(tmp_path, model="someone/else"))
    assert "'someone/else' is no folder here and was not found on the hub" in said
