"""Which kernel, with which tiles, multiplies a few rows by a weight: what benchmarks/tune_linear.py measured.

Kernels: skinny_linear.py (GemvConfig, DotConfig) and wide_linear.py (WideConfig), the latter for Hopper only.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GemvConfig:
    """Tiles of the kernel for one row."""

    outputs: int
    """Outputs of a program."""
    inputs: int
    """Inputs of a step."""
    warps: int = 4


@dataclass(frozen=True, slots=True)
class DotConfig:
    """Tiles of the kernel for a few rows."""

    outputs: int
    inputs: int
    stages: int
    warps: int = 4
    swap: bool = False
    """W is the left operand, so that 64 of its rows fit wgmma."""
    splits: int = 1
    """Programs that share the inputs of one tile; the last to arrive adds up."""


@dataclass(frozen=True, slots=True)
class WideConfig:
    """Tiles of the kernel for tens of rows."""

    rows: int
    """Rows of x in a tile."""
    outputs: int
    inputs: int
    stages: int
    warps: int = 4
    swap: bool = True
    splits: int = 1


LinearConfig = GemvConfig | DotConfig | WideConfig
Shape = tuple[int, int, bool]
"""(outputs, inputs, with SiLU: then the weight has twice as many rows)"""

# One row. H100 80GB HBM3, Llama-3.1-8B; share of the floor of bytes over 3.03 TB/s: qkv 0.99, o 0.98, gate_up 1.02,
# down 1.01, head 1.04.
GEMV: dict[Shape, GemvConfig] = {
    (6144, 4096, False): GemvConfig(2, 2048),
    (4096, 4096, False): GemvConfig(2, 2048),
    (14336, 4096, True): GemvConfig(1, 4096),
    (4096, 14336, False): GemvConfig(1, 2048),
    (128256, 4096, False): GemvConfig(1, 4096),
}

# Up to so many rows; None: the library is faster. The matrices of Llama-3.1-8B, Llama-3.2-1B and Qwen3-0.6B: qkv, o,
# gate_up, down, head. H100 80GB HBM3, bf16: microseconds of one matrix, in brackets the library's (for SiLU with a
# kernel of its own).
FEW: dict[Shape, tuple[tuple[int, DotConfig | WideConfig | None], ...]] = {
    (6144, 4096, False): (
        (16, DotConfig(32, 256, 4, splits=2)),
        (32, DotConfig(64, 256, 3, swap=True)),  # 21.1 (24.3)
        (64, WideConfig(32, 64, 128, 4)),  # 22.3 (24.2)
        (128, WideConfig(128, 64, 64, 8)),  # 22.6 (24.9)
        (256, None),  # 26.3 (24.2)
    ),
    (4096, 4096, False): (
        (16, DotConfig(32, 256, 6)),
        (32, DotConfig(64, 128, 6, swap=True, splits=2)),  # 14.1 (15.2)
        (64, WideConfig(64, 64, 128, 5, warps=8, splits=2)),  # 15.9 (15.6)
        (128, WideConfig(64, 64, 128, 6)),  # 15.9 (16.0)
        (256, None),  # 19.2 (18.3)
    ),
    (14336, 4096, True): (
        (16, DotConfig(32, 256, 4)),
        (32, DotConfig(64, 128, 4, swap=True)),  # 84.4 (90.5)
        (64, WideConfig(64, 64, 128, 3, swap=False)),  # 86.5 (107.0)
        (128, WideConfig(128, 64, 128, 3)),  # 90.4 (109.3)
        (256, WideConfig(128, 128, 64, 4, warps=8, swap=False)),  # 108.1 (126.4)
    ),
    (4096, 14336, False): (
        (16, DotConfig(64, 256, 4, swap=True, splits=2)),
        (32, DotConfig(64, 256, 4, warps=8, swap=True, splits=2)),  # 45.1 (48.3)
        (64, WideConfig(32, 64, 128, 8)),  # 46.4 (48.6)
        (128, WideConfig(128, 64, 64, 8, swap=False, splits=2)),  # 51.8 (53.6)
        (256, None),  # 61.7 (59.2)
        (384, WideConfig(128, 128, 64, 7, swap=False)),  # 73.4 (84.8)
    ),
    (128256, 4096, False): (
        (16, DotConfig(64, 256, 4, swap=True)),
        (32, DotConfig(64, 128, 6, swap=True)),  # 356.2 (440.3)
        (64, WideConfig(64, 128, 128, 3, warps=8, swap=False)),  # 361.3 (454.2)
        (128, WideConfig(128, 128, 128, 3)),  # 375.8 (456.0)
        (256, WideConfig(256, 128, 64, 4, warps=8)),  # 438.3 (478.0)
    ),
    (3072, 2048, False): (
        (16, DotConfig(64, 256, 4, swap=True)),  # 7.2 (8.3)
        (32, DotConfig(64, 128, 5, swap=True)),  # 7.4 (7.6)
        (64, None),  # 8.2 (7.8)
        (128, None),  # 8.5 (8.1)
        (256, None),  # 9.5 (9.3)
    ),
    (2048, 2048, False): (
        (16, DotConfig(64, 256, 4, swap=True, splits=2)),  # 5.8 (6.6)
        (32, DotConfig(64, 128, 5, swap=True, splits=4)),  # 6.3 (6.6)
        (64, WideConfig(32, 64, 128, 5, warps=8)),  # 6.9 (6.8)
        (128, None),  # 7.8 (6.9)
        (256, None),  # 8.4 (7.1)
    ),
    (8192, 2048, True): (
        (16, WideConfig(32, 64, 128, 3)),  # 24.8 (28.7)
        (32, WideConfig(32, 64, 128, 3)),  # 25.0 (29.3)
        (64, WideConfig(64, 64, 128, 4, swap=False)),  # 25.9 (30.4)
        (128, WideConfig(128, 64, 128, 3, swap=False)),  # 27.4 (32.9)
        (256, WideConfig(128, 128, 64, 4, warps=8, swap=False)),  # 32.9 (38.2)
    ),
    (2048, 8192, False): (
        (16, DotConfig(64, 256, 4, swap=True, splits=4)),  # 13.8 (16.9)
        (32, DotConfig(64, 256, 3, warps=8, swap=True, splits=4)),  # 15.2 (17.3)
        (64, WideConfig(64, 64, 128, 6, warps=8, swap=False, splits=4)),  # 16.9 (17.8)
        (128, WideConfig(64, 64, 128, 6, warps=8, swap=False, splits=2)),  # 19.2 (19.5)
        (256, None),  # 23.9 (18.8)
    ),
    (128256, 2048, False): (
        (16, WideConfig(32, 128, 128, 4, warps=8)),  # 179.4 (221.6)
        (32, WideConfig(32, 128, 128, 3, warps=8)),  # 182.8 (224.6)
        (64, WideConfig(64, 64, 128, 6, swap=False)),  # 187.1 (231.7)
        (128, WideConfig(128, 64, 64, 8)),  # 200.6 (236.2)
        (256, WideConfig(256, 128, 64, 4, warps=8, swap=False)),  # 246.4 (252.0)
    ),
    (4096, 1024, False): (
        (16, DotConfig(64, 128, 5, swap=True)),  # 5.6 (6.5)
        (32, DotConfig(64, 128, 6, swap=True)),  # 4.9 (6.4)
        (64, WideConfig(64, 64, 128, 6)),  # 5.1 (6.6)
        (128, WideConfig(64, 128, 64, 8, swap=False)),  # 6.3 (6.7)
        (256, WideConfig(128, 64, 64, 6, warps=8)),  # 7.3 (7.6)
    ),
    (1024, 2048, False): (
        (16, DotConfig(64, 256, 3, warps=8, swap=True, splits=4)),  # 4.6 (6.1)
        (32, DotConfig(64, 256, 3, swap=True, splits=4)),  # 5.3 (6.1)
        (64, None),  # 6.5 (6.2)
        (128, None),  # 7.1 (6.2)
        (256, None),  # 8.4 (6.6)
    ),
    (3072, 1024, True): (
        (16, DotConfig(64, 128, 4, swap=True)),  # 7.0 (9.1)
        (32, DotConfig(64, 128, 4, swap=True)),  # 7.6 (9.2)
        (64, WideConfig(32, 64, 128, 4)),  # 6.9 (9.4)
        (128, WideConfig(64, 64, 128, 4, swap=False)),  # 7.5 (9.6)
        (256, WideConfig(128, 64, 64, 6, swap=False)),  # 9.5 (10.8)
    ),
    (1024, 3072, False): (
        (16, DotConfig(64, 256, 3, swap=True, splits=4)),  # 5.1 (8.1)
        (32, DotConfig(64, 128, 5, swap=True, splits=4)),  # 5.8 (8.1)
        (64, WideConfig(32, 64, 128, 6, warps=8, splits=2)),  # 7.2 (8.4)
        (128, None),  # 7.9 (7.7)
        (256, None),  # 10.2 (8.9)
    ),
    (151936, 1024, False): (
        (16, WideConfig(32, 64, 128, 5)),  # 110.2 (134.8)
        (32, WideConfig(32, 128, 128, 4, warps=8)),  # 112.7 (137.5)
        (64, WideConfig(64, 64, 128, 5)),  # 114.7 (141.3)
        (128, WideConfig(128, 128, 64, 6)),  # 124.3 (148.3)
        (256, WideConfig(256, 128, 64, 4, warps=8)),  # 159.0 (164.4)
    ),
}
OTHERS: tuple[tuple[int, WideConfig | None], ...] = (
    (64, WideConfig(64, 64, 128, 4)),
    (128, WideConfig(128, 64, 128, 3)),
    (256, WideConfig(128, 128, 64, 4, warps=8, swap=False)),
)
"""More than 32 rows of shapes nobody has measured, with SiLU: one kernel less than the library."""
MAX_DOT_ROWS = 32


def choose(rows: int, outputs: int, inputs: int, silu: bool, has_tma: bool) -> LinearConfig | None:
    """None: leave it to the library."""
    shape = (outputs, inputs, silu)
    if rows == 1:
        return _divides(GEMV.get(shape) or _default_gemv(outputs, inputs, silu), outputs, inputs)
    for most, config in FEW.get(shape, ()):
        if rows <= most and (has_tma or not isinstance(config, WideConfig)):
            return _divides(config, outputs, inputs) if _is_full(config, rows) else None
    if rows <= MAX_DOT_ROWS:
        return _divides(_default_dot(outputs, inputs, silu), outputs, inputs)
    if silu and has_tma and shape not in FEW:
        config = next((c for most, c in OTHERS if rows <= most), None)
        return _divides(config, outputs, inputs) if _is_full(config, rows) else None
    return None


def _is_full(config: LinearConfig | None, rows: int) -> bool:
    """A second tile that reaches over the last row is slow: 40 us where whole tiles take 27. Steps are padded instead."""
    if not isinstance(config, WideConfig):
        return True
    return rows % config.rows == 0 or rows <= min(config.rows, MAX_DOT_ROWS)


def _divides(config: LinearConfig | None, outputs: int, inputs: int) -> LinearConfig | None:
    splits = 1 if config is None or isinstance(config, GemvConfig) else config.splits
    if config is None or outputs % config.outputs or inputs % (config.inputs * splits):
        return None
    return config


def _power_of_two_in(number: int, most: int) -> int:
    return min(most, number & -number)


def _default_gemv(outputs: int, inputs: int, silu: bool) -> GemvConfig | None:
    step = _power_of_two_in(inputs, 4096 if outputs >= 16384 else 2048)
    if step < 128:
        return None
    rows = max(1, (2048 if silu else 4096) // step)
    while rows > 1 and (outputs % rows or outputs // rows < 256):
        rows //= 2
    return GemvConfig(rows, step)


def _default_dot(outputs: int, inputs: int, silu: bool) -> DotConfig | None:
    step = _power_of_two_in(inputs, 256)
    if step < 64 or outputs % 32:
        return None
    splits = 1
    while not silu and splits < 8 and outputs // 32 * splits < 192 and inputs // (2 * splits) % step == 0:
        splits *= 2
    return DotConfig(32, step, 4, splits=splits)
