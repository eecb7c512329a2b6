"""Processes that compile Triton kernels while this one does other things; what they make is found in Triton's cache.

Threads alone took 8 to 9 s of a first start on an H100's host: of every kernel some 0.1 s is Python, which threads of one
process do one after another, and the thread that says what is wanted waited with them. A process of its own
(compiler_process.py) loads torch and Triton while this one does, and forks for every kernel. It is started where Triton's cache
has no mark of an earlier start with the same kernels and options, and ends when everything is compiled. Where it is not ready or
fails, the caller compiles itself, so errors are the compiler's own.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import itertools
import logging
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

log = logging.getLogger("backplane")

READY_S = 3.0
"""A kernel waits so long for the process to be ready: the two load torch at about the same time."""
TIMEOUT_S = 60.0
"""For one kernel, whose compiler may have died; then the caller compiles."""
ANSWER_BYTES = 5


class Compilers:
    """`compile` may be called from many threads; it is for kernels that have not been compiled on this machine."""

    def __init__(self, mark: Path | None = None) -> None:
        """mark: a file that `finish` leaves."""
        self.count = 0
        """Kernels that were compiled so."""
        self._mark = mark
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._waiting: dict[int, Future[bool]] = {}
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
        """Compile what Triton's own function would, but in another process. False: it has not been done, or was before."""
        job = _job_of(compile_kernel)
        if job is None or not self._ready.wait(READY_S):
            return False
        answer: Future[bool] = Future()
        with self._lock:
            if self._gone:  # nobody would answer
                return False
            number = next(self._numbers)
            self._waiting[number] = answer
        try:
            done = self._send((number, job)) and answer.result(TIMEOUT_S)
        except TimeoutError:
            done = False
        with self._lock:
            self.count += done
        return done

    def finish(self) -> None:
        """Everything is compiled: leave the mark, end the process."""
        if self.count:
            log.info("%d kernels were compiled for this GPU; later starts find them", self.count)
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
        assert self._process.stdin is not None
        try:
            with self._lock:
                pickle.dump(message, self._process.stdin)
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
                waiting = self._waiting.pop(int.from_bytes(answer[:4], "little"))
            waiting.set_result(answer[4] == 1)
        stream.close()
        with self._lock:
            self._gone = True
            for waiting in self._waiting.values():
                waiting.set_result(False)


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
    cache = Path(os.environ.get("TRITON_CACHE_DIR") or Path("~/.triton/cache").expanduser())
    mark = cache / f"backplane-{hashlib.sha256(repr(state).encode()).hexdigest()[:32]}"
    try:
        return None if mark.exists() else Compilers(mark)
    except OSError:
        return None


def _job_of(compile_kernel: Callable[[], Any]) -> dict[str, Any] | None:
    """What Triton's function, which only calls its compiler, would give it; None: an unknown Triton, or it is in the cache."""
    held = inspect.getclosurevars(compile_kernel).nonlocals
    try:
        source, target, options = held["src"], held["target"], held["options"]
        if _is_in_cache(source, target, options, held["env_vars"]):
            return None
        job = {
            "module": source.fn.module,
            "name": source.fn.fn.__qualname__,
            "source": (source.signature, source.constants, source.attrs),
            "target": (target.backend, target.arch, target.warp_size),
            "options": dict(options.__dict__),
        }
        pickle.dumps(job)
    except (ImportError, OSError, KeyError, AttributeError, TypeError, pickle.PicklingError):
        return None
    return job


def _is_in_cache(source: Any, target: Any, options: Any, env_vars: Any) -> bool:
    """As Triton's compiler looks."""
    from triton.compiler import make_backend
    from triton.runtime.cache import get_cache_key, get_cache_manager

    key = get_cache_key(source, make_backend(target), options, env_vars)
    files = get_cache_manager(hashlib.sha256(key.encode()).hexdigest())
    return files.get_group(f"{source.name[:150]}.json") is not None
