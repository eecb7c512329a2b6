"""Tokens a second through HTTP streaming with 256 clients, over the same engine offline, both on this GPU.

    python benchmarks/gpu/streaming.py [--api-server-count 2] [--tokenizer tokenizer.json]

Random weights of Llama-3.1-8B's shape and a real tokenizer of 128k tokens, so that text is made of every token. Prompts go
as token ids. Clients are processes of their own: one event loop for all of them would be what is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import random
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import workloads

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

CLIENTS, INPUT, OUTPUT, EACH = 256, 256, 256, 1
CLIENT_PROCESSES = 8
PORT = 8765


def model_folder(tokenizer: str | None, shape: str) -> str:
    folder = Path(tempfile.mkdtemp())
    if tokenizer is None:
        import guided

        guided.tokenizer()
        tokenizer = str(guided.CACHE)
    shutil.copy(tokenizer, folder / "tokenizer.json")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>", "model_max_length": 131072}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return workloads.write_model_dir(folder, shape)


def prompts(seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(1, 127000) for _ in range(INPUT)] for _ in range(CLIENTS * EACH)]


def offline(folder: str, options: dict[str, Any]) -> float:
    from core import Engine, SamplingParams

    params = SamplingParams(temperature=0, max_tokens=OUTPUT, ignore_eos=True)
    rates = []
    with Engine(folder, **options) as engine:
        for run in range(3):
            work = prompts(run)
            begin = time.perf_counter()
            engine.generate(work, params, use_tqdm=False)
            rates.append(len(work) * OUTPUT / (time.perf_counter() - begin))
    return max(rates[1:])


async def one_request(prompt: list[int]) -> int:
    """Chunks that came; raises if the answer is no stream to its end."""
    body = {"model": "m", "prompt": prompt, "max_tokens": OUTPUT, "temperature": 0, "ignore_eos": True, "stream": True}
    raw = json.dumps({**body, "stream_options": {"include_usage": True}}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", PORT, limit=1 << 20)
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw)
    last = b""
    chunks = 0
    async for line in reader:
        if line.startswith(b"data: {"):
            last = line
            chunks += 1
    writer.close()
    made = json.loads(last[6:])["usage"]["completion_tokens"] if last else 0
    if made != OUTPUT:
        raise RuntimeError(f"{made} tokens came, {OUTPUT} were asked for: {last[:200]!r}")
    return chunks


async def clients(mine: list[list[int]]) -> int:
    async def client(number: int) -> int:
        return sum([await one_request(p) for p in mine[number::count]])

    count = CLIENTS // CLIENT_PROCESSES
    return sum(await asyncio.gather(*(client(i) for i in range(count))))


def client_process(mine: list[list[int]], begin: Any, results: Any) -> None:
    begin.wait()
    try:
        results.put(asyncio.run(clients(mine)))
    except Exception as error:
        results.put(f"{type(error).__name__}: {error}")


def one_run(seed: int) -> tuple[float, int]:
    """Tokens a second of all clients, and chunks."""
    context = multiprocessing.get_context("spawn")
    work = prompts(seed)
    begin, results = context.Barrier(CLIENT_PROCESSES + 1), context.Queue()
    processes = [
        context.Process(target=client_process, args=(work[i::CLIENT_PROCESSES], begin, results))
        for i in range(CLIENT_PROCESSES)
    ]
    for p in processes:
        p.start()
    begin.wait()
    start = time.perf_counter()
    found = [results.get() for _ in processes]
    seconds = time.perf_counter() - start
    for p in processes:
        p.join()
    if failed := [f for f in found if isinstance(f, str)]:
        raise RuntimeError(failed[0])
    return len(work) * OUTPUT / seconds, sum(found)


def online(folder: str, options: dict[str, Any], servers: int) -> tuple[float, int]:
    flags = [f"--{k.replace('_', '-')}={json.dumps(v) if isinstance(v, bool) else v}" for k, v in options.items()]
    flags += ["--port", str(PORT), "--api-server-count", str(servers), "--served-model-name", "m", "--no-playground"]
    log = open(workloads.out_folder() / f"server-{servers}.log", "w")  # noqa: SIM115
    server = subprocess.Popen([sys.executable, "-m", "server", folder, *flags], stdout=log, stderr=log, cwd=ROOT)
    try:
        deadline = time.monotonic() + 180
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{PORT}/ready", timeout=1)
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the server did not start: {log.name}") from None
                time.sleep(0.2)
        return max([one_run(seed) for seed in range(3)][1:])
    finally:
        server.terminate()
        server.wait(60)
        log.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--api-server-count", default="1,2", help="comma-separated: server processes of each run")
    parser.add_argument("--tokenizer", help="a tokenizer.json of 128k tokens; unset: one is trained (5 minutes)")
    parser.add_argument("--shape", choices=list(workloads.SHAPES), default="llama-3.1-8b")
    args = parser.parse_args()
    folder = model_folder(args.tokenizer, args.shape)
    options = {"load_format": "dummy", "max_model_len": 4096, "max_num_seqs": 256, "enable_prefix_caching": False}
    record: dict[str, Any] = {"workload": "http", "engine": "backplane", "shape": args.shape, "clients": CLIENTS}
    for count in map(int, args.api_server_count.split(",")):
        rate, chunks = online(folder, options, count)
        record[f"http_tok_s_{count}_servers"] = round(rate)
        record[f"tokens_a_chunk_{count}_servers"] = round(CLIENTS * EACH * OUTPUT / chunks, 2)
    alone = offline(folder, options)
    record["offline_tok_s"] = round(alone)
    for count in map(int, args.api_server_count.split(",")):
        record[f"ratio_{count}_servers"] = round(record[f"http_tok_s_{count}_servers"] / alone, 3)
    workloads.emit(record)


if __name__ == "__main__":
    main()
