"""core/kernels/tiled_linear.py against its reference in Triton's interpreter, and how a configuration gets to it."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined: before the imports below
pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu runs these on the GPU itself")

from core.kernels import dispatch, linear_configs, skinny_linear, tiled_linear  # noqa: E402
from core.kernels.linear_configs import TiledConfig  # noqa: E402


def check(rows: int, outputs: int, inputs: int, silu: bool, config: TiledConfig) -> None:
    x, weight = torch.randn(rows, inputs), torch.randn(outputs * (1 + silu), inputs)
    bias = None if silu else torch.randn(outputs)
    expected = skinny_linear.skinny_linear_reference(x, weight, bias, silu)
    results = []
    for _ in range(2):  # the second finds the flags as the first left them
        part, flags = skinny_linear.workspace(x.device, 1, 1)
        assert not flags.any()
        part.fill_(float("nan"))
        results.append(tiled_linear.tiled_linear(x, weight, bias, silu, config=config))
        torch.testing.assert_close(results[-1], expected, rtol=1e-4, atol=1e-3)
    assert torch.equal(*results)


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize(
    ("rows", "outputs", "inputs", "splits"),
    [
        (16, 16, 64, 4),  # one tile, four programs
        (13, 40, 88, 3),  # ragged in all three; the interpreter has 4 multiprocessors
        (33, 48, 96, 2),  # three tiles of rows, one stretch each
        (20, 112, 64, 8),  # seven tiles of outputs over two stretches
    ],
)
def test_tiled_linear(rows: int, outputs: int, inputs: int, splits: int, swap: bool, silu: bool) -> None:
    check(rows, outputs, inputs, silu, TiledConfig(16, 16, 16, 2, swap=swap, splits=splits))


def test_a_tile_of_few_programs() -> None:
    check(16, 48, 160, False, TiledConfig(16, 16, 32, 2, splits=1))
    check(16, 48, 160, False, TiledConfig(16, 16, 32, 2, splits=8, blocks=3))


def test_groups_run_at_once() -> None:
    def groups(rows: int, config: TiledConfig) -> int:
        return tiled_linear.count_groups(config, rows, 6144, 4096, 132)

    assert groups(256, TiledConfig(256, 128, 64, 4)) == 132
    assert groups(256, TiledConfig(256, 128, 64, 4, splits=2)) == 96
    assert groups(256, TiledConfig(128, 128, 64, 3, warps=4, blocks=2)) == 132
    assert groups(384, TiledConfig(128, 128, 64, 4)) == 44


def test_refusals() -> None:
    x, config = torch.randn(4, 24), TiledConfig(16, 16, 16, 2)
    with pytest.raises(ValueError, match="it must have rows of 32"):
        tiled_linear.tiled_linear(x, torch.randn(8, 32), config=config)
    with pytest.raises(ValueError, match="multiple of 16 bytes"):
        tiled_linear.tiled_linear(x[:, :22], torch.randn(8, 22), config=config)
    with pytest.raises(ValueError, match="bias before SiLU"):
        tiled_linear.tiled_linear(x, torch.randn(8, 24), torch.randn(4), True, config=config)
    with pytest.raises(ValueError, match="takes 2-byte numbers"):
        tiled_linear.tiled_linear(x, torch.randn(8, 24), config=dataclasses.replace(config, producer=True))
    for wrong in (TiledConfig(16, 192, 16, 2, producer=True), TiledConfig(16, 96, 16, 2, swap=True, producer=True)):
        with pytest.raises(ValueError, match="a large tile has 192 outputs"):
            tiled_linear.tiled_linear(x.half(), torch.randn(8, 24).half(), config=wrong)


def test_both_kernels_compile_for_hopper(tmp_path: Path) -> None:
    """Without a GPU, in a process without the interpreter: wgmma, TMA, no spills in the loop, shared memory that fits."""
    script = Path(__file__).parents[3] / "benchmarks" / "gpu" / "tune_linear.py"
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(script), "--offline", "--quick"],
        env={**env, "TRITON_CACHE_DIR": str(tmp_path)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count('"problem": null') == 2 and done.stdout.count("producer=True") == 1


def test_a_configuration_in_the_table_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the table over the choice for a row count to the kernel; no entry: the library."""
    rows, outputs, inputs = 48, 1024, 64
    config = TiledConfig(16, 256, 32, 2)
    monkeypatch.setattr(skinny_linear, "has_tma", lambda _: True)
    x, weight = torch.randn(rows, inputs).half(), torch.randn(outputs, inputs).half()
    assert dispatch._few_rows(x, weight, None, False) is None
    monkeypatch.setitem(linear_configs.FEW, (outputs, inputs, False), ((256, config), (512, None)))
    assert skinny_linear.choose_config(x, weight) == config
    assert skinny_linear.choose_config(x[:40], weight) is None  # a tile would reach over the last row
    assert skinny_linear.choose_config(torch.randn(512, inputs).half(), weight) is None
    found = dispatch._few_rows(x, weight, None, False)
    assert found is not None
    torch.testing.assert_close(found, skinny_linear.skinny_linear_reference(x, weight, None), rtol=1e-2, atol=1e-2)
    assert linear_configs.choose(rows, outputs, inputs, False, False) is None  # no TMA
    monkeypatch.setitem(linear_configs.FEW, (outputs, inputs, False), ((40, config),))
    assert skinny_linear.choose_config(x[:40], weight) == config  # just what was measured
