"""The matrix library's file, read before its kernels are wanted.

cuBLAS loads a kernel when a product of a new shape first wants it. Its file has half a gigabyte: on a machine that has not
read it yet such a product took 0.3 to 0.7 s on an H100's host, in the middle of serving; that it waits for the disk is inferred: a second
process on the same machine did not.
"""

from __future__ import annotations

import threading
from pathlib import Path

LIBRARY = "libcublasLt.so"
PIECE_BYTES = 8 << 20


def mapped_files(name: str) -> list[Path]:
    """Files of that name, or that begin so, which this process has mapped."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return []
    found = (line.split(maxsplit=5)[-1].strip() for line in maps.read_text().splitlines())
    return sorted({Path(f) for f in found if f.rpartition("/")[2].startswith(name)})


def read_ahead(files: list[Path] | None = None) -> threading.Thread:
    """Read the files, unset: the matrix library's, into the system's cache, in a thread that nobody has to wait for."""

    def read() -> None:
        piece = bytearray(PIECE_BYTES)
        for path in mapped_files(LIBRARY) if files is None else files:
            try:
                with path.open("rb", buffering=0) as file:
                    while file.readinto(piece):
                        pass
            except OSError:
                continue  # then the first products wait

    thread = threading.Thread(target=read, name="read-ahead", daemon=True)
    thread.start()
    return thread
