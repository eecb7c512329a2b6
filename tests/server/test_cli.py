"""The command: other spellings, mistakes, and the demo model answered from the shell."""

from __future__ import annotations

import subprocess
import sys
import time

import click
import pytest

from core.config import option_owners
from server.cli import aliases
from server.cli.main import serve
from server.cli.options import server_options

ENGINE = [sys.executable, "-c", "from server.cli.main import main; main()"]


def parse(*args: str) -> dict:
    context = serve.make_context("serve", list(args))
    return {k: v for k, v in context.params.items() if v not in (None, ())}


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--max_num_seqs", "8"], {"max_num_seqs": 8}),
        (["--max-seq-len=99"], {"max_model_len": 99}),
        (["--enforce-eager", "true"], {"enforce_eager": True}),
        (["--enforce-eager"], {"enforce_eager": True}),
        (["--no-enable-prefix-caching"], {"enable_prefix_caching": False}),
        (["--enable-prefix-caching", "false"], {"enable_prefix_caching": False}),
        (["--dtype", "half"], {"dtype": "float16"}),
        (["--served-model-name", "a", "b"], {"served_model_name": ("a", "b")}),
        (["--api-key", "x", "--api-key", "y"], {"api_key": ("x", "y")}),
        (["--tensor-parallel-size", "1"], {}),
        (["--guided-decoding-backend", "outlines"], {"guided_backend": "outlines"}),
        (["--hf-overrides", '{"a": 1}'], {"hf_overrides": {"a": 1}}),
        (["some/model", "--port", "9"], {"model": "some/model", "port": 9}),
        # one dash, and values with units
        (["m", "-tp", "1", "-q", "fp8", "-O3"], {"model": "m", "quantization": "fp8"}),
        (["-O.level=3", "--port", "1"], {"port": 1}),
        (
            ["--max-model-len", "16K", "--max-num-batched-tokens", "8k"],
            {"max_model_len": 16384, "max_num_batched_tokens": 8000},
        ),
        (["--max-model-len", "1.5k"], {"max_model_len": 1500}),
        # values of options that do nothing here are not taken for the model
        (["--task", "generate", "m", "--compilation-config", '{"level": 3}'], {"model": "m"}),
        (["--multi-step-stream-outputs", "true", "--num-scheduler-steps", "8", "m"], {"model": "m"}),
        (["--no-enable-lora", "--enable-sleep-mode", "false", "--port", "1"], {"port": 1}),
        # objects, whole, by key, by options of their own
        (
            ["--hf-overrides.rope_parameters.factor", "2", "--hf-overrides.x", "y"],
            {"hf_overrides": {"rope_parameters": {"factor": 2}, "x": "y"}},
        ),
        (
            ["--rope-scaling", '{"rope_type": "linear", "factor": 2}', "--rope-theta", "1e6"],
            {"hf_overrides": {"rope_scaling": {"rope_type": "linear", "factor": 2}, "rope_theta": 1e6}},
        ),
        (["--allowed-origins", '["a", "b"]'], {"allowed_origins": ("a", "b")}),
        (["--hf-token", "--port", "1"], {"port": 1}),
        (
            ["--distributed-executor-backend", "uni", "--attention-backend", "TRITON_ATTN"],
            {"executor": "in_process", "attention_backend": "triton"},
        ),
        (["--structured-outputs-config.backend", "guidance"], {"guided_backend": "llguidance"}),
        (["--generation-config", "vllm", "--disable-fastapi-docs"], {"generation_config": "none", "openapi": False}),
        (["--disable-async-output-proc"], {"async_scheduling": False}),
        (
            ["--enable-auto-tool-choice", "--tool-call-parser", "glm45"],
            {"enable_auto_tool_choice": True, "tool_call_parser": "glm4"},
        ),
    ],
)
def test_spellings(args, expected):
    assert parse(*args) == expected


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--max-num-sqes", "8"], "did you mean --max-num-seqs"),
        (["--tensor-parallel-size", "4"], "only 1 is possible"),
        (["--enable-lora"], "not there yet"),
        (["--block-size", "many"], "not a valid integer"),
        (["--dtype", "int3"], "is not one of"),
        (["--port"], "wants a value"),
        (["--max-model-len", "8q"], "not a valid integer"),
        (["--enforce-eager=maybe"], "not true or false"),
        (["--hf-overrides", "[1]"], "not a JSON object"),
        (["--hf-overrides.a"], "wants a value"),
        (["--speculative-config.model", "x"], "not there yet"),
        (["--tool-parser-plugin", "x.py"], "engine plugins new"),
        (["--trust-request-chat-template"], "code from a stranger"),
        (["--rope-scalign", "x"], "is not an option of serve; did you mean --rope-scaling"),
        (["--tensor-paralel-size", "2"], "did you mean --tensor-parallel-size"),
        (["--confg", "x.yaml"], "did you mean --config"),
        (["--zzz"], "serve --help lists all"),
        (["--config", "/nowhere.yaml"], "No such file"),
    ],
)
def test_mistakes_are_named(args, message):
    with pytest.raises(click.UsageError, match=message):
        parse(*args)


def test_options_without_effect_warn(capsys):
    assert parse("--disable-log-requests", "--swap-space", "4", "--port", "1") == {"port": 1}
    assert capsys.readouterr().err.count("has no effect") == 2


def test_a_file_of_options(tmp_path):
    file = tmp_path / "options.yaml"
    file.write_text(
        "model: m\nmax-model-len: 16K\nmax_num_seqs: 4\nport: 9\nenable-prefix-caching: false\nenforce_eager: true\n"
        "served-model-name: [a, b]\nhf-overrides: {rope_theta: 5.0}\nuvicorn-log-level: debug\nseed:\nswap-space: 4\n"
    )
    wanted = {
        "model_option": "m", "max_model_len": 16384, "max_num_seqs": 4, "port": 9, "enable_prefix_caching": False,
        "enforce_eager": True, "served_model_name": ("a", "b"), "hf_overrides": {"rope_theta": 5.0}, "log_level": "debug",
    }  # fmt: skip
    assert parse("--config", str(file)) == wanted
    # the command line wins, wherever it stands, and under any spelling
    found = parse(
        "other", "--max-seq-len", "99", "--config", str(file), "--no-enforce-eager", "--served-model-name", "c"
    )
    assert found == {
        **wanted,
        "model": "other",
        "max_model_len": 99,
        "enforce_eager": False,
        "served_model_name": ("c",),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max-model-lne: 3\n", "options.yaml: --max-model-lne is not an option of serve; did you mean --max-model-len"),
        ("- a\n", "not a YAML mapping"),
        ("a: [b\n", "is not YAML"),
        ("enable-lora: true\n", "options.yaml: --enable-lora: LoRA adapters are not there yet"),
        ("port: many\n", "not a valid integer"),
    ],
)
def test_mistakes_of_a_file_are_named(text, message, tmp_path):
    file = tmp_path / "options.yaml"
    file.write_text(text)
    with pytest.raises(click.UsageError, match=message):
        parse("--config", str(file))


def test_every_spelling_leads_to_an_option_that_is_there():
    known = {name.replace("_", "-") for name in (*option_owners(), *server_options())} | {"model"}
    assert set(aliases.NAMES.values()) <= known
    assert set(aliases.VALUES) <= known and {owner for owner, _ in aliases.JSON_PARTS.values()} <= known
    for owner, values in aliases.VALUES.items():
        option = {**option_owners(), **server_options()}[owner.replace("-", "_")]
        assert not option.choices or set(values.values()) <= set(option.choices), owner
    tables = [aliases.NAMES, aliases.FLAGS, aliases.JSON_PARTS, aliases.IGNORED, aliases.ONLY, aliases.REFUSED]
    names = [name for table in tables for name in table]
    assert len(names) == len(set(names)), "one spelling has two meanings"
    assert not set(names) & known, "a spelling hides an option"


def test_help_and_plugins_are_quick():
    for args in (["--help"], ["plugins", "list"]):
        times = []
        for _ in range(3):
            begun = time.perf_counter()
            done = subprocess.run([*ENGINE, *args], capture_output=True, text=True)
            times.append(time.perf_counter() - begun)
            assert done.returncode == 0 and "serve" in done.stdout or "LlamaForCausalLM" in done.stdout
        assert min(times) < 1.0  # 0.5 on a machine that does nothing else


def test_generate_answers_from_the_shell():
    done = subprocess.run([*ENGINE, "generate", "What is 2 + 3?"], capture_output=True, text=True)
    assert done.stdout.strip() == "2 + 3 = 5", done.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["generate", "x", "--model", "/nowhere"], "model folder '/nowhere' does not exist"),
        # before a model is loaded, not with the first request that needs it
        (["serve", "--port", "0", "--guided-backend", "llguidanc"], "did you mean 'llguidance'?"),
        (["serve", "--port", "0", "--reasoning-parser", "qwn3"], "did you mean 'qwen3'?"),
        (["generate", "x", "--guided-backend", "nope"], "guided_backend 'nope' is not registered"),
        # the model is not looked for either
        (["serve", "/nowhere", "--chat-template", "/nowhere.jinja"], "cannot be read as a file"),
    ],
)
def test_errors_are_one_line(args, message):
    done = subprocess.run([*ENGINE, *args], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ") and message in line
