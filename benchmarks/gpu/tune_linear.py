"""Times every sensible tile of the matrix kernels for tens to hundreds of rows on this GPU, beside the library's.

    python benchmarks/gpu/tune_linear.py [--shapes 8b] [--rows 256,128,192,384,512,64] [--budget-s 470] [--quick]
    python benchmarks/gpu/tune_linear.py --offline     # no GPU: compile every tile for sm_90, print its resources

Kernels (core/kernels/tiled_linear.py, wide_linear.py) are compiled beforehand, side by side in child processes, into
Triton's cache. Each is checked against float32 first, elementwise, over a poisoned output, twice (the same bits), and
then timed as replays of a CUDA graph over weights too many for the L2 cache. Timing runs in a child of its own: one that
hangs or dies costs one configuration. Prints for each shape and number of rows the floor (bytes over 3.35 TB/s or FLOPs
over 800 TFLOP/s, whichever is longer), the library and the best of each kernel; appends all to $OUT/tune_linear.jsonl;
at the end prints the entries for core/kernels/linear_configs.py.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch.nn import functional

from core.kernels.linear_configs import FEW, DotConfig, Shape, TiledConfig, WideConfig

BANDWIDTH = 3.35e12
RATE = 800e12
MULTIPROCESSORS = 132
SHARED_BYTES = 232_448
"""Of a program on Hopper, 227 KiB; two on a multiprocessor share 228 KiB and take 1 KiB each for themselves."""
HALF_SHARED_BYTES = 115_712
BARRIER_BYTES = 256
SILENCE_S = 20.0
"""A child that says nothing for so long hangs."""
MOST_LOST = 2
"""So many configurations of a kind may hang or die; the rest of the kind is then left out."""
SHAPES: dict[str, list[Shape]] = {
    "8b": [(6144, 4096, False), (4096, 4096, False), (14336, 4096, True), (4096, 14336, False), (128256, 4096, False)],
    "1b": [(3072, 2048, False), (2048, 2048, False), (8192, 2048, True), (2048, 8192, False), (128256, 2048, False)],
    "0.6b": [(4096, 1024, False), (1024, 2048, False), (3072, 1024, True), (1024, 3072, False), (151936, 1024, False)],
}
Config = TiledConfig | WideConfig
KINDS = ("wide", "tiled", "producer", "large")
"""wide_linear.py, tiled_linear.py, streamed_linear.py and its kernel of 192 outputs"""


def floor_us(rows: int, shape: Shape) -> float:
    outputs, inputs, silu = shape
    wide = outputs * (1 + silu)
    return max((wide + rows) * inputs * 2 / BANDWIDTH, 2 * rows * wide * inputs / RATE) * 1e6


def tiled_tiles(silu: bool) -> list[TiledConfig]:
    """Every tile worth compiling, whatever the rows; splits are no part of the compiled kernel."""
    found = []
    for rows in (64, 128, 256):
        for outputs in (32, 64, 128, 256):
            columns = outputs * (1 + silu)
            for inputs in (64, 128):
                for swap in (False, True):
                    for warps in (4, 8):
                        left = columns if swap else rows
                        sums = rows * columns // (32 * warps)
                        if not 32 <= sums <= 128 or columns < 64 or left < 16 * warps or columns > 256:
                            continue
                        if inputs == 128 and rows + columns > 256:
                            continue  # three stages or fewer
                        size = (rows + columns) * inputs * 2
                        for blocks in (1, 2) if warps == 4 else (1,):
                            limit = SHARED_BYTES if blocks == 1 else HALF_SHARED_BYTES
                            stages = min(8, (limit - BARRIER_BYTES) // size)
                            if stages < 3:
                                continue
                            found.append(TiledConfig(rows, outputs, inputs, stages, warps, swap, 4, blocks))
                            if not (silu and swap):
                                found.append(dataclasses.replace(found[-1], producer=True))
    for rows, stages in ((128, 5), (256, 4)):
        found.append(TiledConfig(rows, 96 if silu else 192, 64, stages, swap=True, producer=True))
    return found


def fits_rows(tile: int, rows: int) -> bool:
    """Without much waste: 192 rows are three tiles of 64, or one of 256; 64 rows are not one of 256."""
    return rows % tile == 0 or (rows > tile // 2 and -(-rows // tile) * tile <= 1.4 * rows)


def tiled_candidates(rows: int, shape: Shape) -> list[Config]:
    outputs, inputs, silu = shape
    found: list[Config] = []
    for tile in tiled_tiles(silu):
        tiles_m = -(-rows // tile.rows)
        if not fits_rows(tile.rows, rows) or tiles_m > 4 or outputs < tile.outputs:
            continue
        most = MULTIPROCESSORS * tile.blocks // tiles_m
        tiles = -(-outputs // tile.outputs)
        if tiles * 8 < most:
            continue  # a tile over more than eight programs
        seen = set()
        for splits in (1, 2, 3, 4, 8):
            groups = min(most, tiles * splits)
            if groups not in seen and groups * 3 >= most:  # a third of the device at least
                seen.add(groups)
                found.append(dataclasses.replace(tile, splits=splits))
    return found


def wide_candidates(rows: int, shape: Shape) -> list[Config]:
    """What is in the table, and its like for other numbers of rows."""
    outputs, inputs, silu = shape
    found: list[Config] = [c for most, c in FEW.get(shape, ()) if most == rows and isinstance(c, Config)]
    for tile in (64, 128, 256):
        for n in (64, 128):
            for swap in (False, True):
                for splits in (1,) if silu else (1, 2):
                    columns = n * (1 + silu)
                    warps = 8 if tile * columns > 128 * 128 else 4
                    programs = outputs // n * splits * -(-rows // tile)
                    if rows % tile or tile * columns > 128 * 256 or inputs % (64 * splits) or outputs % n:
                        continue
                    if programs < 90 or (splits > 1 and programs > 500) or (n == 64 and swap and warps == 8):
                        continue
                    stages = min(8, (SHARED_BYTES - BARRIER_BYTES) // ((tile + columns) * 128))
                    config = WideConfig(tile, n, 64, stages, warps, swap, splits)
                    if config not in found:
                        found.append(config)
    return found


def kind_of(config: Config) -> str:
    if isinstance(config, WideConfig):
        return "wide"
    return "large" if config.large else "producer" if config.producer else "tiled"


def candidates(rows: int, shape: Shape, quick: bool) -> list[Config]:
    found = wide_candidates(rows, shape) + tiled_candidates(rows, shape)
    if quick:
        return [c for kind in KINDS for c in [c for c in found if kind_of(c) == kind][-2:]]
    return found


def run(config: Config, x: torch.Tensor, w: torch.Tensor, silu: bool) -> torch.Tensor:
    from core.kernels import tiled_linear, wide_linear

    if isinstance(config, TiledConfig):
        return tiled_linear.tiled_linear(x, w, None, silu, config=config)
    return wide_linear.wide_linear(x, w, None, silu, config=config)


def kernel_key(rows: int, shape: Shape, config: Config) -> object:
    """Jobs of one key are one compiled kernel."""
    if isinstance(config, TiledConfig):
        return dataclasses.replace(config, splits=1, blocks=config.blocks if config.producer else 1), shape[2]
    return dataclasses.replace(config, splits=min(2, config.splits)), shape[2], -(-rows // config.rows) == 1


def compile_some(jobs: list[tuple[int, Shape, Config]]) -> list[str]:
    """-> what went wrong"""
    from core.kernels.launch import compiling

    failed = []
    for rows, (outputs, inputs, silu), config in jobs:
        x = torch.empty(rows, inputs, device="cuda", dtype=torch.bfloat16)
        w = torch.empty(outputs * (1 + silu), inputs, device="cuda", dtype=torch.bfloat16)
        try:
            with compiling():
                run(config, x, w, silu)
        except Exception as error:
            failed.append(f"{config}: {error!r}"[:200])
    return failed


def compile_all(plan: dict[tuple[int, Shape], list[Config]], processes: int) -> None:
    jobs: dict[object, tuple[int, Shape, Config]] = {}
    for (rows, shape), configs in sorted(plan.items(), key=lambda p: p[0][1][0] * p[0][1][1]):
        for config in configs:
            jobs.setdefault(kernel_key(rows, shape, config), (rows, shape, config))  # of the smallest weight
    work = sorted(jobs.values(), key=lambda j: -j[2].rows * j[2].outputs)
    chunks = [work[i :: 3 * processes] for i in range(3 * processes)]
    begun = time.perf_counter()
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        failed = [line for lines in pool.map(compile_some, [c for c in chunks if c]) for line in lines]
    print(f"compiled {len(work)} kernels in {time.perf_counter() - begun:.0f} s, {len(failed)} failed", flush=True)
    for line in failed:
        print("  " + line, flush=True)


def wrong(got: torch.Tensor, expected: torch.Tensor) -> str | None:
    """None: right. Every element counts: one tile in a thousand does not move a norm."""
    off = (got.float() - expected).abs()
    allowed = 0.02 * expected.abs() + 0.02 * expected.square().mean().sqrt()
    bad = ~(off <= allowed)  # NaN is bad
    return f"{int(bad.sum())} of {bad.numel()} wrong" if bool(bad.any()) else None


def time_one(conn: Connection, rows: int, shape: Shape, configs: list[Config], library_too: bool, until: float) -> None:
    """until: of time.monotonic, which all processes share"""
    from benchmarks.gpu_kernels import graph_us
    from core.kernels import activation, skinny_linear

    outputs, inputs, silu = shape
    wide = outputs * (1 + silu)
    count = max(2, min(64, -(-300_000_000 // (wide * inputs * 2))))
    torch.manual_seed(0)
    weights = [torch.randn(wide, inputs, device="cuda", dtype=torch.bfloat16) * 0.02 for _ in range(count)]
    x = torch.randn(rows, inputs, device="cuda", dtype=torch.bfloat16)
    expected = functional.linear(x.float(), weights[0].float())
    if silu:
        expected = functional.silu(expected[:, :outputs]) * expected[:, outputs:]

    def library() -> None:
        for w in weights:
            y = functional.linear(x, w)
            if silu:
                activation.silu_and_mul(y)

    if library_too:
        conn.send(("library", graph_us(library, 7) / count))
    for config in configs:
        if time.monotonic() > until:
            break
        conn.send(("begin", config))
        us, problem = None, None
        try:
            results = []
            for _ in range(2):
                poison = torch.full((rows, outputs), float("nan"), device="cuda", dtype=torch.bfloat16)
                del poison  # the kernel's output takes its place
                results.append(run(config, x, weights[0], silu))
            problem = wrong(results[0], expected)
            if problem is None and not torch.equal(*results):
                problem = "two runs differ"
            del results
            if problem is None:
                us = graph_us(lambda: [run(config, x, w, silu) for w in weights], 5) / count  # noqa: B023
                problem = wrong(run(config, x, weights[0], silu), expected)
                if problem is None and any(bool(c.any()) for _, c in skinny_linear._workspaces.values()):
                    problem = "leaves flags behind"
        except Exception as error:
            problem = repr(error)[:150]
            if "CUDA error" in problem:
                raise
        conn.send(("end", us if problem is None else None, problem))
    conn.send(("done",))


def timer(conn: Connection) -> None:
    """The child that times: takes (rows, shape, configs, library too, until) until None."""
    torch.zeros(1, device="cuda")
    conn.send(("ready",))
    while (job := conn.recv()) is not None:
        time_one(conn, *job)
        torch.cuda.empty_cache()


class Timer:
    """The child, started again when it hangs or dies."""

    def __init__(self, until: float) -> None:
        self._context = get_context("spawn")
        self._until = until
        self._lost = dict.fromkeys(KINDS, 0)
        self._start()

    def _start(self) -> None:
        self._conn, theirs = self._context.Pipe()
        self._child = self._context.Process(target=timer, args=(theirs,), daemon=True)
        self._child.start()
        theirs.close()
        if not self._conn.poll(120):
            raise RuntimeError("the child that times did not start within 120 s")
        self._conn.recv()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._conn.send(None)
            self._child.join(10)

    def times(
        self, rows: int, shape: Shape, configs: list[Config]
    ) -> tuple[float | None, list[tuple[float, Config]], list[str]]:
        """-> (the library's microseconds, the configurations' that are right, fastest first, what went wrong)"""
        library, found, problems = None, [], []
        left, current = self._worth(configs), None
        self._conn.send((rows, shape, left, True, self._until))
        while True:
            try:
                message = self._conn.recv() if self._conn.poll(SILENCE_S) else ("hangs",)
            except (EOFError, ConnectionResetError):
                message = ("dies",)
            if message[0] in ("hangs", "dies"):
                self._child.kill()
                self._child.join(20)
                if current is None:
                    self._start()
                    return None, [], [f"the library, or the reference, {message[0]}"]
                print(f"  {message[0]}: {rows} {shape} {spell(current)}", flush=True)
                problems.append(f"{message[0]}: {spell(current)}")
                self._lost[kind_of(current)] += 1
                left = self._worth(left[left.index(current) + 1 :])
                self._start()
                self._conn.send((rows, shape, left, False, self._until))
            elif message[0] == "library":
                library = message[1]
            elif message[0] == "begin":
                current = message[1]
            elif message[0] == "end":
                assert current is not None
                if message[1] is not None:
                    found.append((message[1], current))
                else:
                    problems.append(f"{message[2]}: {spell(current)}")
            else:
                return library, sorted(found, key=lambda f: f[0]), problems

    def _worth(self, configs: list[Config]) -> list[Config]:
        return [c for c in configs if self._lost[kind_of(c)] < MOST_LOST]


def spell(config: Config | DotConfig | None) -> str:
    """As the table writes it."""
    if config is None:
        return "None"
    words = []
    for i, field in enumerate(dataclasses.fields(config)):
        value = getattr(config, field.name)
        if field.default is dataclasses.MISSING:
            words.append(str(value))
        elif value != field.default:
            words.append(f"{field.name}={value}")
        assert i < 4 or field.default is not dataclasses.MISSING
    return f"{type(config).__name__}({', '.join(words)})"


def print_entries(results: dict[tuple[int, Shape], tuple[float, float, Config]]) -> None:
    """(library's time, best time, best), each by 1 % at least to be chosen."""
    print("\nfor core/kernels/linear_configs.py; microseconds, in brackets the library's:")
    for shape in dict.fromkeys(s for _, s in results):
        rows_of = sorted(r for r, s in results if s == shape)
        print(f"    {shape}: (")
        for most, config in FEW.get(shape, ()):
            if most < rows_of[0]:
                print(f"        ({most}, {spell(config)}),")  # type: ignore[arg-type]
        for rows in rows_of:
            theirs, mine, config = results[rows, shape]
            chosen = config if mine < 0.99 * theirs else None
            print(f"        ({rows}, {spell(chosen)}),  # {mine:.1f} ({theirs:.1f})")
        print("    ),")


def offline(shapes: list[Shape], quick: bool) -> None:
    """Compile every tile for sm_90 without a GPU: shared memory, registers, spills inside and outside of the loop."""
    bad = 0
    for silu in sorted({s[2] for s in shapes}):
        tiles = tiled_tiles(silu)
        if quick:
            tiles = [[t for t in tiles if t.producer][-1] if silu else tiles[0]]
        for config in tiles:
            line = resources(config, silu)
            bad += line["problem"] is not None
            print(json.dumps({"config": spell(config), "silu": silu, **line}), flush=True)
    print(f"{bad} do not fit, or spill in the loop")
    if bad:
        raise SystemExit(1)


def source_of(config: TiledConfig, silu: bool, dtype: str, bias: bool) -> tuple[Any, dict[str, Any]]:
    """What the compiler takes, and its options, as the launch would make them."""
    from triton.compiler import ASTSource

    x_block, w_block = [config.rows, config.inputs], [config.outputs, config.inputs]
    layouts = ["", ""]
    kind: Any = ASTSource
    options: dict[str, Any] = {"num_warps": config.warps, "launch_pdl": True}
    constants: dict[str, Any] = {
        "ROWS": config.rows, "OUTPUTS": config.outputs, "INPUTS": config.inputs, "STAGES": config.stages,
        "SWAP": config.swap, "SILU": silu, "BIAS": bias,
    }  # fmt: skip
    if config.producer:
        from triton.experimental.gluon import language as gl
        from triton.experimental.gluon._runtime import GluonASTSource

        from core.kernels import streamed_linear

        kind = GluonASTSource
        element = {"bf16": gl.bfloat16, "fp16": gl.float16}[dtype]
        options["maxnreg"] = streamed_linear.max_registers(config)
        if config.large:
            kernel: Any = streamed_linear._large_kernel
            blocks = [x_block, *streamed_linear.large_blocks(config, silu)]
            for name in ("OUTPUTS", "SWAP"):
                del constants[name]
        else:
            kernel = streamed_linear._streamed_kernel
            blocks = [x_block, w_block]
            constants["WARPS"] = config.warps
        layouts = ["," + repr(gl.NVMMASharedLayout.get_default_for(b, element)) for b in blocks]
    else:
        from core.kernels.tiled_linear import _tiled_kernel

        kernel = _tiled_kernel
        blocks = [x_block, [2, *w_block] if silu else w_block]
        constants["PDL"] = True
    descs = [n for n in kernel.arg_names if n.endswith("_desc")]
    types = {"part_ptr": "*fp32", "flag_ptr": "*i32"}
    for name, block, layout in zip(descs, blocks, layouts, strict=True):
        types[name] = f"tensordesc<{dtype}[{','.join(map(str, block))}]{layout}>"
    signature = {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        else:
            signature[name] = types.get(name, f"*{dtype}" if name.endswith("_ptr") else "i32")
    names = list(signature)
    even = [n for n in names if n.endswith("_ptr") or n in ("N", "K")]
    source = kind(
        kernel,
        signature,
        {(names.index(n),): v for n, v in constants.items()},
        {(names.index(n),): [["tt.divisibility", 16]] for n in even},
    )
    return source, options


def resources(config: TiledConfig, silu: bool, dtype: str = "bf16", bias: bool = False) -> dict[str, Any]:
    import triton
    from triton.backends.compiler import GPUTarget

    try:
        source, options = source_of(config, silu, dtype, bias)
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    except Exception as error:
        return {"problem": repr(error)[:150]}
    dump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run([dump, "--dump-resource-usage", file.name], capture_output=True, text=True).stdout
        code = subprocess.run([dump, "-sass", file.name], capture_output=True, text=True).stdout
    lines = code.splitlines()
    matrix = [i for i, line in enumerate(lines) if "HGMMA" in line]
    local = [i for i, line in enumerate(lines) if re.search(r"\b(LDL|STL)\b", line)]
    registers = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    shared = compiled.metadata.shared
    limit = SHARED_BYTES if config.blocks == 1 else HALF_SHARED_BYTES
    inside = sum(matrix[0] <= i <= matrix[-1] for i in local) if matrix else -1
    problem = None
    if not matrix or "UTMALDG" not in code:
        problem = "no wgmma or no TMA"
    elif shared > limit:
        problem = f"shared memory {shared} of {limit}"
    elif inside:
        problem = "spills in the loop"
    return {
        "shared": shared,
        "registers": int(registers[1]) if registers else None,
        "stack": int(registers[2]) if registers else None,
        "spills_in_loop": inside,
        "wgmma": sorted(set(re.findall(r"HGMMA\.(\w+)", code))),
        "problem": problem,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="256,128,192,384,512,64", help="in this order, until the time is up")
    parser.add_argument("--shapes", default="8b", help="of " + ", ".join(SHAPES))
    parser.add_argument("--processes", type=int, default=14, help="that compile")
    parser.add_argument("--budget-s", type=float, default=470, help="start no shape after so many seconds")
    parser.add_argument("--quick", action="store_true", help="one shape with and one without SiLU, few tiles")
    parser.add_argument("--offline", action="store_true", help="no GPU: compile every tile, print its resources")
    args = parser.parse_args()
    begun = time.perf_counter()
    shapes = [s for name in args.shapes.split(",") for s in SHAPES[name]]
    rows = [int(r) for r in args.rows.split(",")]
    if args.quick:
        shapes, rows = shapes[1:3], rows[:2]
    if args.offline:
        offline(shapes, args.quick)
        return
    plan = {(r, s): candidates(r, s, args.quick) for r in rows for s in shapes}
    print(f"{sum(map(len, plan.values()))} configurations", flush=True)
    compile_all(plan, args.processes)
    child = Timer(time.monotonic() + args.budget_s - (time.perf_counter() - begun) + 15)
    results: dict[tuple[int, Shape], tuple[float, float, Config]] = {}
    for (count, shape), configs in plan.items():
        if time.perf_counter() - begun > args.budget_s:
            print(f"out of time before {count} rows of {shape}", flush=True)
            break
        try:
            theirs, found, problems = child.times(count, shape, configs)
        except (EOFError, OSError, RuntimeError) as error:  # no child starts any more: keep what there is
            print(f"{count} rows of {shape}: {error!r}", flush=True)
            break
        floor = floor_us(count, shape)
        best = [
            {"us": round(us, 2), "share": round(floor / us, 3), "config": spell(config), "kind": kind_of(config)}
            for us, config in found
        ]
        line = {
            "rows": count,
            "shape": shape,
            "floor_us": round(floor, 2),
            "library_us": theirs and round(theirs, 2),
            "gpu": torch.cuda.get_device_name(),
            "all": best,
            "problems": problems,
        }
        if out := os.environ.get("OUT"):
            with open(Path(out) / "tune_linear.jsonl", "a") as f:
                f.write(json.dumps(line) + "\n")
        wrongs = f"; {len(problems)} of {len(configs)} fail, first: {problems[0]}" if problems else ""
        if theirs is None or not found:
            print(f"{count} {shape}: nothing to compare{wrongs}", flush=True)
            continue
        results[count, shape] = theirs, *found[0]
        print(
            f"{count} rows {shape}: floor {floor:.1f}, library {theirs:.1f} ({floor / theirs:.2f}){wrongs}", flush=True
        )
        for kind in KINDS:
            first = next((f for f in found if kind_of(f[1]) == kind), None)
            if first is not None:
                us, config = first
                print(f"    {us:.1f} ({floor / us:.2f}, library / this {theirs / us:.3f}) {spell(config)}", flush=True)
    child.close()
    print_entries(results)
    print(f"{time.perf_counter() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main()
