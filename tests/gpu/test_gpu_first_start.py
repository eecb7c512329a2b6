"""The first start on a machine: other processes compile the kernels, and later starts find them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("no GPU", allow_module_level=True)

START = """
import json
from core import Engine, SamplingParams
with Engine("demo", max_num_seqs=8, num_blocks=256, max_graph_batch=64) as e:
    compilers = e._loop.executor._compilers
    tokens = e.generate("1 2 3", SamplingParams(temperature=0, max_tokens=8), use_tqdm=False)[0].outputs[0].token_ids
    print(json.dumps([None if compilers is None else compilers.count, list(tokens)]))
"""


def start(cache: Path) -> tuple[int | None, list[int]]:
    root = Path(__file__).parents[2]
    env = {**os.environ, "TRITON_CACHE_DIR": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", START], env=env, cwd=root, capture_output=True, text=True, check=True, timeout=250
    )
    count, tokens = json.loads(done.stdout.splitlines()[-1])
    return count, tokens


def test_other_processes_compile_at_the_first_start(tmp_path):
    count, tokens = start(tmp_path)
    assert count is not None and count > 20
    assert start(tmp_path) == (None, tokens)
