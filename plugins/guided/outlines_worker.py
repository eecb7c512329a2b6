"""Builds one outlines-core index: an order on stdin, the index on stdout. Run as a process, so that it can be killed."""

from __future__ import annotations

import contextlib
import os
import sys

import msgspec

NICENESS = 10
"""The engine's steps go first: on a machine whose cores are all busy, theirs waited for a second."""


def main() -> None:
    with contextlib.suppress(OSError, AttributeError):  # not on every system
        os.nice(NICENESS)
    order = msgspec.msgpack.decode(sys.stdin.buffer.read())
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (order["memory"], order["memory"]))
        resource.setrlimit(resource.RLIMIT_CPU, (2 * order["seconds"], 2 * order["seconds"]))
    except (ImportError, ValueError, OSError):  # not on this system; the time limit of the parent is left
        pass
    import outlines_core

    vocabulary = outlines_core.Vocabulary(order["eos"], dict(order["tokens"]))
    try:
        index = outlines_core.Index(order["regex"], vocabulary)
    except Exception as error:
        sys.stdout.buffer.write(b"E" + str(error).encode())
        return
    _, (data,) = index.__reduce__()
    sys.stdout.buffer.write(b"I" + bytes(data))


if __name__ == "__main__":
    main()
