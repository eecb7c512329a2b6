"""Kernels compiled by another process, for a GPU that need not be there; each test in a process with a cache of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import pytest

from core.kernels.compilers import start_compilers

# not importorskip: the interpreter's tests, in other files, have to be the first to import it
pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")

HEAD = """
    import sys, time
    from pathlib import Path
    from core.kernels.compilers import Compilers

    mark = Path(sys.argv[1]) / "deep" / "mark"
    compilers = Compilers(mark)

    from triton import knobs
    from triton._C.libtriton import get_cache_invalidating_env_vars
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile, make_backend
    from core.kernels.activation import _silu_and_mul_kernel as kernel

    target = GPUTarget("cuda", 90, 32)
    import core.kernels.compilers
    core.kernels.compilers.READY_S = 100  # a machine may be slow
    hits = []
    knobs.compilation.listener = lambda *, cache_hit, **_: hits.append(cache_hit)

    def as_triton_does(block, first="*fp32", target=target):
        types = {"x_ptr": first, "y_ptr": "*fp32", "BLOCK_D": "constexpr", "PDL": "constexpr"}
        names = kernel.arg_names
        signature = {n: types.get(n, "i32") for n in names}
        src = ASTSource(kernel, signature, {(names.index("BLOCK_D"),): block, (names.index("PDL"),): False}, {})
        options = make_backend(target).parse_options({"num_warps": 4})
        env_vars = get_cache_invalidating_env_vars()
        def async_compile():
            return compile(src, target=target, options=options.__dict__, _env_vars=env_vars)
        return async_compile

    def wait_for(what):
        end = time.monotonic() + 100
        while not what() and time.monotonic() < end:
            time.sleep(0.05)
        assert what()
"""


def run(tmp_path: Path, body: str) -> None:
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env["TRITON_CACHE_DIR"] = str(tmp_path / "cache")
    code = textwrap.dedent(HEAD) + textwrap.dedent(body)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=env, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr


def test_another_process_fills_the_cache(tmp_path):
    run(
        tmp_path,
        """
        from concurrent.futures import ThreadPoolExecutor
        with ThreadPoolExecutor(3) as pool:
            assert all(pool.map(compilers.compile, [as_triton_does(b) for b in (64, 128, 256)]))
        assert compilers.count == 3 and not hits
        for block in (64, 128, 256):
            assert as_triton_does(block)().asm["cubin"]
        assert hits == [True, True, True]
        assert not compilers.compile(as_triton_does(64)) and compilers.count == 3  # it is there
        as_triton_does(512)()
        assert hits[3:] == [False]
        assert not mark.exists()
        compilers.finish()
        assert mark.exists() and not compilers.compile(as_triton_does(1024))
        """,
    )


def test_what_fails_there_is_left_to_the_caller(tmp_path):
    run(
        tmp_path,
        """
        wrong = as_triton_does(128, first="fp32")  # no pointer
        assert not compilers.compile(wrong)
        try:
            wrong()
        except Exception as error:
            assert "CompilationError" in type(error).__name__, error
        else:
            raise AssertionError("it compiled")
        assert not compilers.compile(lambda: None)  # nothing that Triton would submit
        compilers._process.kill()
        assert not compilers.compile(as_triton_does(128)) and as_triton_does(128)()
        wait_for(lambda: compilers._gone)
        compilers.close()
        assert not mark.exists()
        """,
    )


def test_a_mark_tells_a_first_start(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    first = start_compilers({"model": "a"})
    assert first is not None
    first.close()  # as where a start fails: nothing is compiled
    again = start_compilers({"model": "a"})
    assert again is not None
    again.finish()
    assert start_compilers({"model": "a"}) is None
    other = start_compilers({"model": "b"})
    assert other is not None
    other.close()
    monkeypatch.setattr("sys.executable", str(tmp_path / "missing"))
    assert start_compilers({"model": "c"}) is None
