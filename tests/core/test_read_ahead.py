"""A library's file is found among the mapped ones, and read to its end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from core.executor.read_ahead import PIECE_BYTES, mapped_files, read_ahead

needs_proc = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="maps are Linux's")


@needs_proc
def test_a_mapped_library_is_found_by_the_beginning_of_its_name():
    (found,) = mapped_files("libtorch_cpu.so")
    assert found.exists() and Path(torch.__file__).parent in found.parents
    assert mapped_files("libtorch_cp") == [found]
    assert mapped_files("no such library") == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
def test_files_are_read_to_their_ends(tmp_path):
    pipe = tmp_path / "library.so"
    os.mkfifo(pipe)
    thread = read_ahead([tmp_path / "missing", pipe])
    with pipe.open("wb") as file:  # ends when all is taken: a pipe holds far less
        file.write(bytes(PIECE_BYTES + 7))
    thread.join(10)
    assert not thread.is_alive()
