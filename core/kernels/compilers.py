"""Processes that compile Triton kernels while this one does other things; what they make is found in Triton's cache.

Half of what compiling takes is Python, which threads of one process do one after another: 8 to 9 s of a first start on an
H100's host. A process of its own (compiler_process.py) loads torch and Triton while this one does, and forks for every kernel.
It is started where Triton's cache has no mark of an earlier start with the same kernels and options, and ends when
everything is compiled. Where it is not ready or fails, the caller compiles itself, so errors are the compiler's own.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

READY_S = 3.0
"""A kernel waits so long for the process to be ready: the two load torch at about the same time."""
TIMEOUT_S = 60.0
"""For one kernel, whose compiler may have died; then the caller compiles."""
PREFIX_BYTES = 8
ANSWER_BYTES = 5


class Compilers:
    """`compile` may be called from many threads; it is for kernels that have not been compiled on this machine."""

    def __init__(self, mark: Path | None = None) -> None:
        """mark: a file that `finish` leaves."""
        self.count = 0
        """Kernels that were compiled so."""
        self._mark = mark
        self._lock = threading.Lock()
        self._waiting: dict[int, tuple[threading.Event, list[bool]]] = {}
        self._next = 0
        self._ready = threading.Event()
        """Or gone, which `_gone` tells."""
        self._gone = False
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("compiler_process.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._send({"path": sys.path, "kernels": __package__})
        threading.Thread(target=self._listen, name="compilers", daemon=True).start()

    def compile(self, compile_kernel: Callable[[], Any]) -> bool:
        """Compile what Triton's own function would, but in another process. False: it has not been done."""
        job = _job_of(compile_kernel) if self._ready.wait(READY_S) and not self._gone else None
        if job is None:
            return False
        event, answer = threading.Event(), [False]
        with self._lock:
            number, self._next = self._next, self._next + 1
            if self._gone:  # nobody would set the event
                return False
            self._waiting[number] = event, answer
        if not self._send((number, job)) or not event.wait(TIMEOUT_S) or not answer[0]:
            return False
        with self._lock:
            self.count += 1
        return True

    def finish(self) -> None:
        """Everything is compiled: leave the mark, end the process."""
        if self._mark is not None:
            with contextlib.suppress(OSError):  # the next start will do the same work
                self._mark.parent.mkdir(parents=True, exist_ok=True)
                self._mark.touch()
        self.close()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.kill()
        self._process.wait()

    def _send(self, message: Any) -> bool:
        data = pickle.dumps(message)
        assert self._process.stdin is not None
        try:
            with self._lock:
                self._process.stdin.write(len(data).to_bytes(PREFIX_BYTES, "little") + data)
                self._process.stdin.flush()
        except (OSError, ValueError):  # it is gone
            return False
        return True

    def _listen(self) -> None:
        """Answers of ANSWER_BYTES: a number and whether it worked; the first says that the process is ready."""
        stream = self._process.stdout
        assert stream is not None
        self._gone = len(stream.read(ANSWER_BYTES)) < ANSWER_BYTES
        self._ready.set()
        while len(answer := stream.read(ANSWER_BYTES)) == ANSWER_BYTES:
            with self._lock:
                event, done = self._waiting.pop(int.from_bytes(answer[:4], "little"))
            done[0] = answer[4] == 1
            event.set()
        stream.close()
        with self._lock:
            self._gone = True
            for event, _ in self._waiting.values():
                event.set()


def has_nvidia_driver() -> bool:
    """Without loading torch."""
    return Path("/dev/nvidiactl").exists()


def hash_compiler() -> threading.Thread:
    """Let Triton hash its own files, half a gigabyte, while others load: the hash is part of every kernel's name in its cache."""

    def work() -> None:
        with contextlib.suppress(ImportError, AttributeError):  # no Triton, or another that does it elsewhere
            from triton.runtime.cache import triton_key

            triton_key()  # and keeps it

    thread = threading.Thread(target=work, name="hash-compiler", daemon=True)
    thread.start()
    return thread


def start_compilers(options: dict[str, Any]) -> Compilers | None:
    """Where this looks like a machine's first start; None: nothing speaks for it. Loads neither torch nor Triton."""
    if not hasattr(os, "fork") or not sys.executable:
        return None
    from importlib.metadata import PackageNotFoundError, version

    try:
        state = [version("triton"), repr(sorted(options.items()))]
    except PackageNotFoundError:
        return None
    state += [path.read_text() for path in sorted(Path(__file__).parent.glob("*.py"))]
    cache = Path(os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache")
    mark = cache / f"backplane-{hashlib.sha256(repr(state).encode()).hexdigest()[:32]}"
    if mark.exists():
        return None
    try:
        return Compilers(mark)
    except OSError:
        return None


def _job_of(compile_kernel: Callable[[], Any]) -> dict[str, Any] | None:
    """What Triton's function, which only calls its compiler, would give it; None: an unknown Triton."""
    held = inspect.getclosurevars(compile_kernel).nonlocals
    try:
        source, target, options = held["src"], held["target"], held["options"]
        job = {
            "module": source.fn.module,
            "name": source.fn.fn.__qualname__,
            "source": (source.signature, source.constants, source.attrs),
            "target": (target.backend, target.arch, target.warp_size),
            "options": dict(options.__dict__),
        }
        pickle.dumps(job)
    except (KeyError, AttributeError, TypeError, pickle.PicklingError):
        return None
    return job
