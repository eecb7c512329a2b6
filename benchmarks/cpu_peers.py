"""Tokens a second on a CPU beside transformers and, where there is an interpreter that has it, llama.cpp.

    python -m venv /tmp/llama && /tmp/llama/bin/pip install llama-cpp-python gguf    # builds it: 10 to 25 minutes
    python benchmarks/cpu_peers.py --llama-python /tmp/llama/bin/python [--rounds 3] [--out FILE]

The models are a random Llama of 125 M parameters, written by transformers, and the demo model, both in float32. Each engine runs in a process of its
own, the engines take turns in every round, and ratios are of medians over the rounds. Prompts are random token ids, greedy,
end of sequence ignored; a figure counts the output tokens over the whole time, prefill included.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WORKLOADS: dict[str, list[tuple[int, int]]] = {
    "1 stream": [(64, 64)],
    "16 streams": [(64, 64)] * 16,
    "16 mixed": [(16 + 13 * i, 8 + (i * 37) % 89) for i in range(16)],
}
"""(prompt, output) tokens of each request, all sent at once."""
THREADS = 2
LLAMA = {
    "vocab_size": 32000,
    "num_hidden_layers": 12,
    "hidden_size": 768,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "intermediate_size": 2048,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

Serve = Callable[[list[list[int]], list[int]], None]


def make_model(folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**LLAMA)).save_pretrained(folder)


def read_safetensors(path: Path) -> dict[str, Any]:
    """float32 arrays. By hand, since llama.cpp's interpreter has numpy alone."""
    import numpy as np

    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    found = {}
    for name, about in json.loads(data[8 : 8 + size]).items():
        if name == "__metadata__":
            continue
        begin, end = (8 + size + at for at in about["data_offsets"])
        if about["dtype"] == "BF16":
            array = (np.frombuffer(data[begin:end], np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            array = np.frombuffer(data[begin:end], {"F32": np.float32, "F16": np.float16}[about["dtype"]])
        found[name] = array.astype(np.float32).reshape(about["shape"])
    return found


def make_gguf(folder: Path, file: Path) -> None:
    """The same weights for llama.cpp, which keeps the rotary halves of q and k interleaved."""
    import gguf

    config = json.loads((folder / "config.json").read_text())
    vocab, layers, heads = config["vocab_size"], config["num_hidden_layers"], config["num_attention_heads"]
    kv_heads, hidden = config["num_key_value_heads"], config["hidden_size"]
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    rope = config.get("rope_parameters") or {}
    writer.add_rope_freq_base(float(rope.get("rope_theta", config.get("rope_theta", 10000.0))))
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_vocab_size(vocab)
    writer.add_file_type(0)
    writer.add_tokenizer_model("llama")
    byte_tokens = [f"<0x{i:02X}>" for i in range(256)]
    writer.add_token_list(["<unk>", "<s>", "</s>", *byte_tokens, *(f"\u2581w{i}" for i in range(vocab - 259))])
    writer.add_token_scores([0.0] * vocab)
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (vocab - 259))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)
    for name, tensor in read_safetensors(folder / "model.safetensors").items():
        for suffix, count in (("q_proj.weight", heads), ("k_proj.weight", kv_heads)):
            if name.endswith(suffix):
                halves = tensor.reshape(count, 2, tensor.shape[0] // count // 2, -1)
                tensor = halves.swapaxes(1, 2).reshape(tensor.shape).copy()
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def backplane(folder: Path) -> Serve:
    from core import Engine, SamplingParams

    # threads: as many as it chooses itself
    engine = Engine(str(folder), skip_tokenizer_init=True, dtype="float32", enable_prefix_caching=False)

    def serve(prompts: list[list[int]], lengths: list[int]) -> None:
        params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in lengths]
        outputs = engine.generate(prompts, params, use_tqdm=False)
        assert [len(o.outputs[0].token_ids) for o in outputs] == lengths

    serve.kv_cache_bytes = engine.ready.memory["kv_cache"]  # type: ignore[attr-defined]
    return serve


def transformers(folder: Path) -> Serve:
    """generate() on one static batch: padded on the left, run to the longest output."""
    import torch
    from transformers import LlamaForCausalLM

    torch.set_num_threads(THREADS)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def serve(prompts: list[list[int]], lengths: list[int]) -> None:
        width, new = max(map(len, prompts)), max(lengths)
        ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0
            )
        assert out.shape[1] == width + new

    return serve


def llama_cpp(folder: Path) -> Serve:
    """llama-cpp-python's low-level calls; the sequences share one context and leave it when they are done."""
    import llama_cpp as lib
    import numpy as np

    file = Path(tempfile.gettempdir()) / f"cpu_peers-{os.getppid()}-{folder.name}.gguf"
    if not file.exists():
        make_gguf(folder, file)
    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(str(file).encode(), lib.llama_model_default_params())
    vocab_size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))

    def serve(prompts: list[list[int]], lengths: list[int]) -> None:
        params = lib.llama_context_default_params()
        params.n_ctx = params.n_batch = 4096
        params.n_ubatch, params.n_seq_max, params.kv_unified = 512, len(prompts), True
        params.n_threads = params.n_threads_batch = THREADS
        context = lib.llama_init_from_model(model, params)
        batch = lib.llama_batch_init(4096, 0, 1)

        def decode(rows: list[tuple[int, int, int, bool]]) -> list[int]:
            batch.n_tokens = len(rows)
            for i, (token, position, sequence, wanted) in enumerate(rows):
                batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
                batch.seq_id[i][0], batch.logits[i] = sequence, wanted
            if status := lib.llama_decode(context, batch):
                raise RuntimeError(f"llama_decode: {status}")
            rows_of_logits = (lib.llama_get_logits_ith(context, i) for i, row in enumerate(rows) if row[3])
            return [int(np.ctypeslib.as_array(r, shape=(vocab_size,)).argmax()) for r in rows_of_logits]

        tokens = decode([(t, j, s, j == len(p) - 1) for s, p in enumerate(prompts) for j, t in enumerate(p)])
        for step in range(max(lengths) - 1):
            alive = [s for s in range(len(prompts)) if step + 1 < lengths[s]]
            new = decode([(tokens[s], len(prompts[s]) + step, s, True) for s in alive])
            for s, token in zip(alive, new, strict=True):
                tokens[s] = token
        lib.llama_batch_free(batch)
        lib.llama_free(context)

    return serve


ENGINES: dict[str, Callable[[Path], Serve]] = {
    "backplane": backplane,
    "transformers": transformers,
    "llama_cpp": llama_cpp,
}


def peak_rss_bytes() -> int:
    """Of this program. (getrusage would count the parent's, from before exec.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def measure(name: str, folder: Path, seed: int) -> dict[str, Any]:
    serve = ENGINES[name](folder)
    rng = random.Random(seed)
    vocab_size = json.loads((folder / "config.json").read_text())["vocab_size"]
    serve([[rng.randrange(300, vocab_size) for _ in range(16)]], [4])
    figures: dict[str, Any] = {}
    for work, requests in WORKLOADS.items():
        prompts = [[rng.randrange(300, vocab_size) for _ in range(n)] for n, _ in requests]
        lengths = [n for _, n in requests]
        start = time.perf_counter()
        serve(prompts, lengths)
        figures[work] = sum(lengths) / (time.perf_counter() - start)
    memory = {"peak_rss_bytes": peak_rss_bytes(), "kv_cache_bytes": getattr(serve, "kv_cache_bytes", None)}
    return {"tokens_per_s": figures, **memory}


def compare(names: dict[str, str], folder: Path, rounds: int) -> dict[str, Any]:
    """Medians over the rounds, and ours over each peer's. names: engine -> its interpreter."""
    root = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    runs: dict[str, list[dict[str, Any]]] = {n: [] for n in names}
    for seed in range(rounds):
        for name, python in names.items():
            command = [python, __file__, "--only", name, "--model", str(folder), "--seed", str(seed)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)  # llama.cpp says a lot
            if done.returncode:
                raise SystemExit(f"{name} failed:\n{done.stderr[-4000:]}")
            print(f"{folder.name}, round {seed}, {name}", file=sys.stderr)
            runs[name].append(json.loads(done.stdout.splitlines()[-1]))
    medians = {
        n: {w: round(statistics.median(r["tokens_per_s"][w] for r in runs[n]), 1) for w in WORKLOADS} for n in names
    }
    peers = [n for n in names if n != "backplane"]
    return {
        "tokens_per_s": medians,
        "backplane_over": {n: {w: round(medians["backplane"][w] / medians[n][w], 2) for w in WORKLOADS} for n in peers},
        "peak_rss_bytes": {n: max(r["peak_rss_bytes"] for r in runs[n]) for n in names},
        "kv_cache_bytes": runs["backplane"][0]["kv_cache_bytes"],
        "weight_bytes": sum(p.stat().st_size for p in folder.glob("*.safetensors")),
        "every_round": runs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--llama-python", help="an interpreter that has llama-cpp-python and gguf")
    parser.add_argument("--model", type=Path, help="a Llama checkpoint alone; unset: the two models")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cpu_peers.json")
    parser.add_argument("--only", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(options.only, options.model, options.seed)))
        return
    names = {"backplane": sys.executable, "transformers": sys.executable}
    versions: dict[str, str] = {}
    if options.llama_python:
        names["llama_cpp"] = options.llama_python
        ask = "from importlib.metadata import version; print(version('llama-cpp-python'))"
        done = subprocess.run([options.llama_python, "-c", ask], capture_output=True, check=True, text=True)
        versions["llama_cpp_python"] = done.stdout.strip()
    from machine import describe  # not for llama.cpp's interpreter

    report: dict[str, Any] = {"machine": {**describe(), **versions, "threads": THREADS}, "rounds": options.rounds}
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["TMPDIR"] = scratch
        if options.model:
            models = {options.model.name: options.model}
        else:
            demo = Path(__file__).resolve().parents[1] / "plugins" / "sources" / "demo" / "data" / "chat"
            models = {"llama-125m": Path(scratch) / "llama-125m", "demo": demo}
            make_model(models["llama-125m"])
        report["models"] = {name: compare(names, folder, options.rounds) for name, folder in models.items()}
    report["load_average_after"] = os.getloadavg()
    shown = {name: {k: v for k, v in m.items() if k != "every_round"} for name, m in report["models"].items()}
    print(json.dumps(shown, indent=2))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
