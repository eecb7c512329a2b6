"""`engine plugins new`, `check` and `list`, with real packages that pip installs into a scratch folder."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from core import hookspecs
from server.hook_entries import HOOKS

KINDS = (*hookspecs.KINDS, *HOOKS)

MAIN = "import sys; from server.cli.main import main; sys.argv[0] = 'engine'; main()"


# one process for all kinds
NEW = """
import sys
from server.cli.main import cli
*kinds, folder = sys.argv[1:]
for kind in kinds:
    cli(["plugins", "new", f"My-{kind}", "--kind", kind, "--directory", folder], standalone_mode=False)
"""


def engine(*arguments: str, site: Path | None = None, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`engine ...` in a process of its own, with `site` in front of what is installed."""
    return python("-c", MAIN, *arguments, site=site, folder=folder)


def python(*arguments: str, site: Path | None = None, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    path = [str(site)] if site else []
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([*path, *filter(None, sys.path)]), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=env, cwd=folder)


def install(site: Path, projects: Sequence[Path]) -> None:
    command = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = python(*command, "--target", str(site), *map(str, projects))
    assert done.returncode == 0, done.stderr


def rows(site: Path, *options: str) -> list[dict[str, str]]:
    done = engine("plugins", "list", "--json", *options, site=site)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def skeletons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder with a new package of every kind, all installed into its `site`."""
    folder = tmp_path_factory.mktemp("skeletons")
    done = python("-c", NEW, *KINDS, str(folder))
    assert done.returncode == 0, done.stderr
    for kind in KINDS:
        assert f"My-{kind}/tests/test_my_{kind}.py" in done.stdout
    install(folder / "site", [folder / f"My-{kind}" for kind in KINDS])
    return folder


def test_the_tests_of_every_skeleton_pass(skeletons: Path):
    folders = [str(skeletons / f"My-{kind}" / "tests") for kind in KINDS]
    done = python(
        "-m", "pytest", "-q", "-p", "no:asyncio", "-p", "no:cacheprovider", "-rA", "--import-mode=importlib",
        "--rootdir", str(skeletons), "-c", str(skeletons / "My-model" / "pyproject.toml"), *folders,
        site=skeletons / "site", folder=skeletons,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for kind in KINDS:
        assert f"PASSED My-{kind}/tests/test_my_{kind}.py" in done.stdout, done.stdout


def test_every_skeleton_is_listed_and_passes_the_check(skeletons: Path):
    site = skeletons / "site"
    listed = {r["distribution"]: r for r in rows(site) if r["distribution"].startswith("My-")}
    for kind in KINDS:
        row = listed[f"My-{kind}"]
        name = {"model": "MyModelForCausalLM", "command": "my-command"}.get(kind, f"my_{kind}")
        assert (row["kind"], row["name"], row["version"], row["state"]) == (kind, name, "0.1.0", "ready")
    for kind in ("model", "guided_backend"):  # one that loads torch, one that does not; the pytest above ran them all
        done = engine("plugins", "check", f"my_{kind}", site=site)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("ok ") == 2 and "0 warning, 0 broken" in done.stdout


def test_selected_names_are_imported_and_say_so(skeletons: Path):
    found = rows(skeletons / "site", "--guided-backend", "my_guided_backend", "--disable-plugin", "my_executor")
    states = {r["name"]: r["state"] for r in found}
    assert states["my_guided_backend"] == "selected" and states["llguidance"] == "ready"
    assert "my_executor" not in states
    done = engine("plugins", "list", "--guided-backend", "my_guided_bakcend", site=skeletons / "site")
    assert done.returncode == 1 and "did you mean 'my_guided_backend'" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["my-model", "--kind", "modle"], "'modle' is not one of"),
        (["core", "--kind", "model"], "which Python has already"),
        (["-x", "--kind", "model"], "not an option|No such option|no such option"),
        (["a/b", "--kind", "model"], "cannot name a distribution"),
        (["class", "--kind", "model"], "choose another name"),
        (["there", "--kind", "model"], "exists; remove it"),
        (["my-model"], "Missing option '--kind'"),
    ],
)
def test_new_refuses_what_cannot_be(arguments: list[str], message: str, tmp_path: Path):
    (tmp_path / "there").mkdir()
    done = engine("plugins", "new", *arguments, "--directory", str(tmp_path))
    assert done.returncode != 0 and re.search(message, done.stderr), done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["there"] and not list((tmp_path / "there").iterdir())


# ---- check, on packages with mistakes

MISTAKES = {
    # package: (source, what check says, exit status)
    "bad-import": ("import nothing_of_that_name\n", ["broken", "ModuleNotFoundError", "nothing_of_that_name"], 1),
    "bad-hook": (
        "from core import hookimpl\n@hookimpl\ndef register_modles(register): pass\n",
        ["broken", "'register_modles' is not a hook; did you mean 'register_models'?"],
        1,
    ),
    "bad-version": ("BACKPLANE_API = 99\n", ["broken", "plugin API 99, this is 1"], 1),
    "bad-signature": (
        "from core import hookimpl\n@hookimpl\ndef register_models(registre): pass\n",
        ["broken", "registre"],
        1,
    ),
    "bad-hook-body": (
        "from core import hookimpl\n@hookimpl\ndef register_models(register): 1 / 0\n",
        ["broken", "register_models failed: ZeroDivisionError"],
        1,
    ),
    "bad-target": (
        "from core import hookimpl\n@hookimpl\ndef register_models(register): register('M', 'bad_target:Gone')\n",
        ["broken", "'M' of bad-target 0.3 cannot be imported from 'bad_target:Gone'", "AttributeError"],
        1,
    ),
    "bad-class": (
        "from core import hookimpl\n@hookimpl\ndef register_attention_backends(register):\n"
        "    register('half', 'bad_class:Half')\nclass Half:\n    name = 'half'\n    def plan(self, batch): pass\n",
        ["broken", "lacks allocate, forward, of core.interfaces.attention:AttentionBackend"],
        1,
    ),
    "bad-register": (
        "from core import hookimpl\n@hookimpl\ndef register_tool_parsers(register):\n"
        "    register('p', 'bad_register:P', markers='<tool>')\n",
        ["broken", "markers='<tool>' is not a tuple of texts"],
        1,
    ),
    "bad-exit": ("raise SystemExit(3)\n", ["broken", "SystemExit: 3"], 1),
    "bad-quantization": (
        "from core import hookimpl\n@hookimpl\ndef register_quantization(register):\n"
        "    register('q', 'bad_quantization:Gone')\n",
        ["broken", "AttributeError"],
        1,
    ),
    "bad-name": (
        "from core import hookimpl\n@hookimpl\ndef register_model_sources(register):\n    register('a', 'bad_name:S')\n"
        "class S:\n    name = 'b'\n    def matches(self, model): return False\n    def resolve(self, config): pass\n",
        ["warning", "its `name` is 'b'"],
        0,
    ),
    "bad-marker": (
        "def register_models(register): register('Unmarked', 'bad_marker:f')\ndef f(context): pass\n"
        "def register_modles(register): pass\n",
        ["warning", "register_models has no @hookimpl", "register_modles is not a hook", "did you mean"],
        0,
    ),
    "bad-weight": (
        "import tokenizers\nfrom core import hookimpl\n@hookimpl\ndef register_models(register): register('H', 'bad_weight:f')\n"
        "def f(context): pass\n",
        ["warning", "importing it loads tokenizers"],
        0,
    ),
    "bad-conflict": (
        "from core import hookimpl\n@hookimpl\ndef register_tool_parsers(register):\n"
        "    register('hermes', 'plugins.parsers.hermes:HermesParser')\n",
        ["warning", "backplane registers this name too", "--plugin tool_parser:hermes=bad-conflict"],
        0,
    ),
    "bad-command": (
        "from core import hookimpl\n@hookimpl\ndef register_commands(register):\n"
        "    register('count', 'bad_command:count', help='Count up.')\n    register('serve', 'bad_command:count')\n"
        "    register('number', 'bad_command:NUMBER')\nNUMBER = 3\n"
        "def __getattr__(name):\n    if name != 'count':\n        raise AttributeError(name)\n    import click\n\n"
        "    @click.command()\n    @click.argument('n', type=int)\n    def count(n):\n        click.echo(list(range(n)))\n\n"
        "    return count\n",
        ["ok command count", "bad_command:count"],
        0,
    ),
    "bad-nothing": ("\n", ["warning", "registers nothing"], 0),
}


@pytest.fixture(scope="module")
def mistakes(tmp_path_factory: pytest.TempPathFactory, write_package: Callable[[Path, str, str], None]) -> Path:
    """A folder as pip would leave it; pip itself installs the skeletons above."""
    site = tmp_path_factory.mktemp("mistakes")
    for name, (source, *_) in MISTAKES.items():
        write_package(site, name, source)
    return site


@pytest.fixture(scope="module")
def verdicts(mistakes: Path) -> dict[str, list[list[str]]]:
    """What `check` finds in each, all in one process."""
    code = (
        "import json, sys\nfrom server.cli.check_plugin import check_distribution\n"
        "print(json.dumps({name: list(check_distribution(name)) for name in sys.argv[1:]}))\n"
    )
    done = python("-c", code, *MISTAKES, site=mistakes)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", MISTAKES)
def test_check_names_the_mistake(verdicts: dict[str, list[list[str]]], name: str):
    _, texts, status = MISTAKES[name]
    text = "\n".join(f"{verdict} {finding}" for verdict, finding in verdicts[name])
    for expected in texts:
        assert expected in text
    assert ("broken" in {verdict for verdict, _ in verdicts[name]}) == bool(status), text


@pytest.mark.parametrize(
    ("name", "status", "sums"), [("bad-hook", 1, "1 broken"), ("bad-nothing", 0, "1 ok, 1 warning")]
)
def test_check_as_a_command(mistakes: Path, name: str, status: int, sums: str):
    done = engine("plugins", "check", name, site=mistakes)
    assert done.returncode == status and sums in done.stdout.splitlines()[-1], done.stdout + done.stderr


def test_check_of_what_is_not_there(mistakes: Path):
    done = engine("plugins", "check", "bad-improt", site=mistakes)
    assert done.returncode == 1 and "did you mean 'bad-import'" in done.stderr


def test_a_plugin_brings_commands(mistakes: Path):
    done = engine("count", "4", site=mistakes)
    assert done.stdout == "[0, 1, 2, 3]\n", done.stderr
    done = engine("--help", site=mistakes)
    assert "count     Count up. (bad-command)" in done.stdout and done.returncode == 0
    assert "command 'serve' of bad-command is left out: `engine serve` is Backplane's own" in done.stderr
    done = engine("cuont", site=mistakes)
    assert done.returncode == 2 and "no command 'cuont'; did you mean 'count'?" in done.stderr
    done = engine("number", site=mistakes)
    assert done.returncode == 1 and "is int, neither a click command nor a function" in done.stderr
    assert {r["state"] for r in rows(mistakes) if r["kind"] == "command"} == {"ready"}


def test_list_warns_of_broken_plugins_and_goes_on(mistakes: Path):
    done = engine("plugins", "list", "--json", "--model-impl", "M", site=mistakes)
    assert done.returncode == 0
    states = {(r["distribution"], r["name"]): r["state"] for r in json.loads(done.stdout)}
    assert "nothing_of_that_name" in states["bad-import", "-"] and "plugin API 99" in states["bad-version", "-"]
    # chosen, and so imported
    assert states["bad-target", "M"].startswith("broken: AttributeError")
    assert states["bad-conflict", "hermes"] == "conflict: choose with --plugin tool_parser:hermes=bad-conflict"
    assert states["backplane", "LlamaForCausalLM"] == "ready"
    assert "warning: plugin bad_import of bad-import is broken: ModuleNotFoundError" in done.stderr
    solved = rows(mistakes, "--plugin", "tool_parser:hermes=backplane")
    states = {(r["distribution"], r["name"]): r["state"] for r in solved}
    assert states["backplane", "hermes"] == "ready"
    assert states["bad-conflict", "hermes"] == "left out: --plugin chooses backplane"


def test_a_source_that_is_broken_does_not_stop_the_engine(mistakes: Path):
    """All sources are asked for a model's name, so each is in use though nobody chose it."""
    code = (
        "from core import Engine, SamplingParams\n"
        "with Engine('demo', device='cpu', num_threads=1, max_model_len=256) as engine:\n"
        "    print(len(engine.generate('Hi', SamplingParams(max_tokens=3, ignore_eos=True))[0].outputs[0].token_ids))\n"
    )
    done = python("-c", code, site=mistakes)
    assert done.stdout == "3\n", done.stderr
    assert "model_source 'a' of bad-name 0.3 is broken and left out: AttributeError" in done.stderr


def test_a_quantization_plugin_that_is_broken_is_named_when_none_reads_the_checkpoint(mistakes: Path):
    code = (
        "from core import Engine\n"
        "Engine('demo', device='cpu', hf_overrides={'quantization_config': {'quant_method': 'new'}})\n"
    )
    done = python("-c", code, site=mistakes)
    assert "the checkpoint is quantized with 'new', and no plugin reads that" in done.stderr, done.stderr
    assert "left out as broken: q" in done.stderr and "'q' is broken and left out: PluginError" in done.stderr


def test_a_selected_plugin_that_does_not_import_stops_the_start_with_its_traceback(mistakes: Path):
    done = engine("serve", "--port", "0", "--model-impl", "M", site=mistakes)
    assert done.returncode == 1
    assert "'M' of bad-target 0.3 cannot be imported" in done.stderr and "AttributeError" in done.stderr
    assert "Traceback" in done.stderr and "serving" not in done.stdout


def test_engine_and_server_process_have_the_same_plugins(skeletons: Path):
    """The engine process finds what the parent found, with the parent's choices; an option leaves a plugin out of both."""
    code = (
        "import asyncio\nfrom core import AsyncEngine, EngineConfig\n"
        "async def run():\n"
        "    config = EngineConfig.from_options(model='demo', executor='my_executor', disable_plugin=('my_model',),\n"
        "        attention_backend='my_attention_backend', max_model_len=256, num_threads=1, device='cpu')\n"
        "    engine = AsyncEngine(config)\n"
        "    await engine.start()\n"
        "    mine = {f'{e.kind}:{e.name} ({e.distribution} {e.version})' for e in engine.registry.entries}\n"
        "    theirs = set(engine.ready.plugins)\n"
        "    assert theirs <= mine, theirs - mine\n"
        "    assert 'executor:my_executor (My-executor 0.1.0)' in theirs, theirs\n"
        "    assert 'attention_backend:my_attention_backend (My-attention_backend 0.1.0)' in theirs, theirs\n"
        "    assert not any('MyModel' in name for name in mine | theirs)\n"
        "    await engine.shutdown()\n"
        "    print('same')\n"
        "asyncio.run(run())\n"
    )
    done = python("-c", code, site=skeletons / "site")
    assert done.stdout == "same\n", done.stdout + done.stderr
