"""schemathesis against our own OpenAPI document and a real server. `pip install backplane[fuzz]` brings it.

It sends each parameter's bounds, wrong types, missing and surplus values, then random bodies of both kinds: no 500, no status
or content type or body that the document does not name, nothing wrong accepted, `Allow` as documented. That what is right by
the document is accepted is not asked: a parameter that is refused by name is a parameter there too.
"""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec

import httpx
import pytest

pytestmark = pytest.mark.skipif(find_spec("schemathesis") is None, reason="pip install backplane[fuzz]")
TWICE = ["/score", "/rerank", "/v2/rerank", "/v1/tokenize", "/v1/detokenize"]
TWICE += ["/v1/responses/input_tokens", "/v1/messages/count_tokens"]
"""The same bodies, read by the same code, under other names."""


def test_the_document_is_what_the_server_does(start_server, tmp_path):
    # short answers: a body that names no limit gets what the model's length leaves
    server = start_server(engine={"max_model_len": 128, "num_blocks": 512}, server={"max_body_bytes": 1_000_000})
    command = [sys.executable, "-W", "ignore", "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"]
    command += ["--seed", "1", "--max-examples", "8", "--phases", "coverage,fuzzing", "--no-shrink"]
    command += [
        "--checks",
        "all",
        "--exclude-checks",
        "positive_data_acceptance",
        "--request-timeout",
        "30",
        "--max-time",
        "27",
    ]
    command += [part for path in TWICE for part in ("--exclude-path", path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    generated = re.search(r"(\d+) generated, (\d+) passed", ended.stdout)
    # over a thousand on a machine that is not busy
    assert generated and int(generated[1]) == int(generated[2]) > 300, ended.stdout
    assert httpx.get(f"{server.url}/health").status_code == 200
    server.wait_idle()
