"""The command: other spellings, mistakes, and the demo model answered from the shell."""

from __future__ import annotations

import subprocess
import sys
import time

import click
import pytest

from server.cli.main import serve

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
    ],
)
def test_mistakes_are_named(args, message):
    with pytest.raises(click.UsageError, match=message):
        parse(*args)


def test_options_without_effect_warn(capsys):
    assert parse("--disable-log-requests", "--swap-space", "4", "--port", "1") == {"port": 1}
    assert capsys.readouterr().err.count("has no effect") == 2


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


def test_errors_are_one_line():
    done = subprocess.run([*ENGINE, "generate", "x", "--model", "/nowhere"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip() == "error: model folder '/nowhere' does not exist"
