"""Seconds from the process's start to the first token, with no compiled kernel on disk and then with all of them.

python benchmarks/gpu/cold_start.py [--shape llama-3.1-8b]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import workloads

ROOT = Path(__file__).resolve().parents[2]


def first_token(shape: str, started_s: float) -> dict[str, Any]:
    """In the fresh process."""
    from core import Engine, SamplingParams

    imported = time.time()
    with Engine(
        workloads.write_model_dir(Path(tempfile.mkdtemp()), shape),
        load_format="dummy",
        skip_tokenizer_init=True,
        max_model_len=workloads.MAX_MODEL_LEN,
        max_num_seqs=workloads.MAX_NUM_SEQS,
    ) as engine:
        engine.generate([list(range(128))], SamplingParams(temperature=0, max_tokens=1), use_tqdm=False)
        done = time.time()
        return {
            "first_token_s": round(done - started_s, 2),
            "imports_s": round(imported - started_s, 2),
            "phases_s": {name: round(seconds, 2) for name, seconds in engine.ready.timeline},
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(workloads.SHAPES), default="llama-3.1-8b")
    parser.add_argument("--started-s", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.started_s is not None:
        print(json.dumps(first_token(args.shape, args.started_s)))
        return
    record: dict[str, Any] = {"workload": "cold_start", "engine": "backplane", "shape": args.shape}
    with tempfile.TemporaryDirectory() as cache:
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        env = {**os.environ, "TRITON_CACHE_DIR": cache, "PYTHONPATH": path}
        for name in ("cold", "warm"):
            command = [sys.executable, __file__, "--shape", args.shape, "--started-s", str(time.time())]
            done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
            record[name] = json.loads(done.stdout.splitlines()[-1])
    workloads.emit(record)


if __name__ == "__main__":
    main()
