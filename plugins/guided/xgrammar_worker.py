"""Compiles grammars for the xgrammar backend: orders on stdin, answers on stdout, each a length and msgpack.

Loading the library takes seconds, so it is loaded once, and every order is worked on in a fork of this process: a fork
has caps on memory and time, can be killed, and may crash without harm to anyone. Ends when stdin does.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from typing import Any, BinaryIO

import msgspec

NICENESS = 10
"""The engine's steps go first, see outlines_worker.py."""
PREFIX_BYTES = 8
"""Of a message's length, little endian."""


def read_message(stream: BinaryIO) -> bytes | None:
    prefix = stream.read(PREFIX_BYTES)
    if len(prefix) < PREFIX_BYTES:
        return None
    size = int.from_bytes(prefix, "little")
    data = stream.read(size)
    return data if len(data) == size else None


def write_message(stream: BinaryIO, data: bytes) -> None:
    stream.write(len(data).to_bytes(PREFIX_BYTES, "little") + data)
    stream.flush()


def compile_order(compiler: Any, library: Any, order: dict[str, Any]) -> Any:
    kind, source = order["kind"], order["source"]
    if kind == "json":
        # white space is bounded: a model that has lost its way would write blanks for ever
        blanks: dict[str, Any] = {"any_whitespace": False, "separators": (",", ":")}
        if order["blanks"]:
            blanks = {"any_whitespace": True, "max_whitespace_cnt": order["blanks"]}
        return compiler.compile_json_schema(source, strict_mode=False, **blanks)
    if kind == "regex":
        return compiler.compile_regex(source)
    if kind == "ebnf":
        return compiler.compile_grammar(source)
    if kind == "lark":
        return compiler.compile_lark(source)
    return compiler.compile_structural_tag(source)


def first_mask_s(library: Any, compiled: Any, num_words: int) -> float:
    """Seconds that the first mask takes. The steps of the engine wait for masks, so a slow one is told here."""
    import numpy as np

    bits = np.zeros((1, num_words), np.int32)
    begin = time.perf_counter()
    library.GrammarMatcher(compiled).fill_next_token_bitmask(bits, 0)
    return time.perf_counter() - begin


def cap_memory(more_bytes: int) -> None:
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:
            now = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (now + more_bytes, now + more_bytes))
    except (ImportError, ValueError, OSError):  # not on this system; the time limit is left
        pass


def work(compiler: Any, library: Any, order: dict[str, Any], out: int) -> None:
    """In a fork: compile and write the answer."""
    with contextlib.suppress(OSError, AttributeError):  # not on every system
        os.nice(NICENESS)
    cap_memory(order["memory"])
    try:
        compiled = compile_order(compiler, library, order)
        seconds = first_mask_s(library, compiled, order["words"])
        answer = b"G" + json.dumps(seconds).encode() + b"\n" + compiled.serialize_json().encode()
    except MemoryError:
        answer = b"M"
    except Exception as error:
        answer = b"E" + str(error).encode("utf-8", "replace")[:4000]
    with open(out, "wb") as file:
        file.write(answer)


def in_a_fork(compiler: Any, library: Any, order: dict[str, Any]) -> bytes:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reading)
            work(compiler, library, order, writing)
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    pieces: list[bytes] = []
    end, total = time.monotonic() + order["seconds"], 0
    try:
        while True:
            ready, _, _ = select.select([reading], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                return b"T"
            piece = os.read(reading, 1 << 20)
            if not piece:
                return b"".join(pieces) or b"M"
            total += len(piece)
            if total > order["most"]:
                return b"L"
            pieces.append(piece)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)


def main() -> None:
    # whatever the library prints must not come between the answers
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    setup = read_message(sys.stdin.buffer)
    if setup is None:
        return
    import xgrammar

    vocabulary = msgspec.msgpack.decode(setup)
    info = xgrammar.TokenizerInfo(
        vocabulary["tokens"],
        xgrammar.VocabType.RAW,
        vocab_size=vocabulary["size"],
        stop_token_ids=vocabulary["eos"],
        add_prefix_space=False,
    )
    # one thread: a fork has no other
    compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
    write_message(answers, b"R")
    while (message := read_message(sys.stdin.buffer)) is not None:
        write_message(answers, in_a_fork(compiler, xgrammar, msgspec.msgpack.decode(message)))


if __name__ == "__main__":
    main()
