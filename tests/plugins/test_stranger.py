"""A stranger's package: built by pip into a scratch folder, found, used, and broken on purpose."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

GOOD = """
from core import hookimpl

@hookimpl
def register_models(register):
    register("StrangeForCausalLM", "strange_model:StrangeForCausalLM")

def __getattr__(name):
    if name != "StrangeForCausalLM":
        raise AttributeError(name)
    from plugins.models.llama import LlamaForCausalLM

    class StrangeForCausalLM(LlamaForCausalLM):
        pass

    return StrangeForCausalLM
"""


def run(site: Path, code: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *filter(None, sys.path)])}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)


LIST = "from server.cli.main import main; import sys; sys.argv = ['engine', 'plugins', 'list', '--json']; main()"


def rows(site: Path) -> list[dict[str, str]]:
    done = run(site, LIST)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_stranger_is_used(tmp_path, install_package, checkpoint):
    site = install_package(tmp_path, "strange-model", GOOD)
    (row,) = [r for r in rows(site) if r["name"] == "StrangeForCausalLM"]
    assert (row["distribution"], row["version"], row["state"]) == ("strange-model", "0.3", "ready")
    code = (
        "from core import Engine, SamplingParams\n"
        f"e = Engine({str(checkpoint('llama'))!r}, hf_overrides={{'architectures': ['StrangeForCausalLM']}})\n"
        "print(e.ready.choices['model_impl'], len(e.generate([[1, 2, 3]], SamplingParams(max_tokens=3, ignore_eos=True))[0].outputs[0].token_ids))"
    )
    done = run(site, code)
    assert done.stdout.strip() == "StrangeForCausalLM (config.json) 3", done.stderr


def test_broken_strangers_are_a_line_in_the_list(tmp_path, install_package):
    hook = "from core import hookimpl\n@hookimpl\ndef register_model(register): pass\n"
    broken = {"import": "import nothing_of_that_name\n", "hook": hook, "version": "BACKPLANE_API = 99\n"}
    listed = rows(install_package(tmp_path, *(text for k, v in broken.items() for text in (f"broken-{k}", v))))
    states = {r["distribution"]: r["state"] for r in listed if r["state"].startswith("broken")}
    assert "nothing_of_that_name" in states["broken-import"]
    assert "did you mean 'register_models'" in states["broken-hook"]
    assert "plugin API 99" in states["broken-version"]
    assert sum(r["distribution"] == "backplane" for r in listed) > 10


CONFLICT = """
from core import hookimpl

@hookimpl
def register_attention_backends(register):
    register("torch", "plugins.attention.torch.backend:TorchBackend")
"""


def test_a_conflict_names_both_and_the_way_out(tmp_path, install_package):
    site = install_package(tmp_path, "second-torch", CONFLICT)
    code = (
        "from core.registry import load_registry\nfrom core.config import PluginConfig\n"
        "def ask(**options): return load_registry(PluginConfig(**options)).get('attention_backend', 'torch')\n"
        "assert ask(plugin=('attention_backend:torch=second-torch',)) is ask(disable_plugin=('second_torch',))\n"
        "print('chosen', flush=True)\n"
        "ask()\n"
    )
    done = run(site, code)
    assert done.stdout == "chosen\n" and done.returncode == 1, done.stderr
    assert "backplane and second-torch" in done.stderr and "--plugin attention_backend:torch=backplane" in done.stderr


def test_a_target_that_does_not_import_stops_with_its_own_traceback(tmp_path, install_package):
    source = GOOD.replace("strange_model:Strange", "gone_target.gone:Strange")
    site = install_package(tmp_path, "gone-target", source)
    code = "from core.registry import load_registry\nfrom core.config import PluginConfig\n"
    done = run(site, code + "load_registry(PluginConfig()).get('model', 'StrangeForCausalLM')")
    assert (
        "PluginError" in done.stderr
        and "of gone-target 0.3 cannot be imported" in done.stderr
        and "ModuleNotFoundError" in done.stderr
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("disable_plugin=('modles',)", "did you mean 'models'"),
        ("plugin=('nonsense',)", "KIND:NAME=DISTRIBUTION"),
        ("plugin=('modle:x=y',)", "did you mean 'model'"),
    ],
)
def test_mistyped_selections(options, message, tmp_path):
    code = f"from core.registry import load_registry\nfrom core.config import PluginConfig\nload_registry(PluginConfig({options}))"
    assert message in run(tmp_path, code).stderr
