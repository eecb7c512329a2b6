"""`engine doctor` says what would be chosen, and names what is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

DOCTOR = [sys.executable, "-c", "from server.cli.main import main; main()", "doctor"]


def doctor(*arguments: str, site: Path | None = None) -> subprocess.CompletedProcess[str]:
    path = [str(site)] if site else []
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([*path, *filter(None, sys.path)]), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([*DOCTOR, *arguments], capture_output=True, text=True, env=env)


def test_a_machine_that_is_well():
    done = doctor("--run")
    assert done.returncode == 0, done.stdout + done.stderr
    said = dict(line.split(None, 1) for line in done.stdout.splitlines() if " " in line)
    assert said["attention_backend"] == "numba (on a CPU)" and said["model_impl"].startswith("LlamaForCausalLM")
    assert "load weights" in said["start-up"] and said["answer"].startswith("Hello!")
    assert done.stdout.splitlines()[-1] == "all is well" and "\x1b[" not in done.stdout


def test_what_is_wrong_is_named(tmp_path: Path, write_package):
    for name, source in (
        ("broken", "import nothing_of_that_name\n"),
        (
            "twice",
            "from core import hookimpl\n@hookimpl\ndef register_models(register):\n"
            "    register('LlamaForCausalLM', 'plugins.models.llama:LlamaForCausalLM')\n",
        ),
    ):
        write_package(tmp_path, name, source)
    done = doctor(site=tmp_path)
    assert done.returncode == 1
    assert "broken of broken is broken: ModuleNotFoundError" in done.stdout
    assert "model 'LlamaForCausalLM' is registered by backplane and twice; choose with --plugin" in done.stdout
    assert done.stdout.splitlines()[-1] == "3 problems found"  # the demo model needs the name that is in conflict
