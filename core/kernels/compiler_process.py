"""The process behind compilers.py: a script. It loads what kernels are made with once, and forks for each."""

import importlib
import os
import pickle
import signal
import sys
from typing import Any

MODULES = ("fixed_linear", "rms_norm", "rope", "sampling", "wide_linear")
"""Whoever imports these has all that takes long."""


class Job:
    """One kernel. Whatever is the same for all is worked out before the fork: Triton's own hash alone takes half a second."""

    def __init__(self, wanted: dict[str, Any]) -> None:
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource, make_backend
        from triton.runtime.cache import get_cache_key

        kernel = getattr(importlib.import_module(wanted["module"]), wanted["name"])
        self._source, self._target = ASTSource(kernel, *wanted["source"]), GPUTarget(*wanted["target"])
        self._options = wanted["options"]
        backend = make_backend(self._target)
        get_cache_key(self._source, backend, backend.parse_options(dict(self._options)), {})

    def run(self) -> None:
        """Compile into Triton's cache. Raises whatever is wrong."""
        from triton.compiler import compile

        compile(self._source, target=self._target, options=self._options)


def main() -> None:
    """Answer until the parent closes the pipe."""
    setup = pickle.load(sys.stdin.buffer)
    sys.path[:] = setup["path"]
    importlib.import_module("triton.runtime.cache").triton_key()
    for name in MODULES:
        importlib.import_module(f"{setup['kernels']}.{name}")
    answers = os.dup(1)
    os.dup2(2, 1)  # nothing that a compiler prints gets among them
    os.write(answers, bytes(5))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    while True:
        try:
            number, wanted = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        done = 0
        try:
            # Triton runs the assembler to ask for its version, and wants to know how that ended
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            job = Job(wanted)
        except Exception:
            os.write(answers, number.to_bytes(4, "little") + bytes([0]))
            continue
        finally:
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        if os.fork():
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        try:
            job.run()
            done = 1
        finally:
            os.write(answers, number.to_bytes(4, "little") + bytes([done]))
            os._exit(0)


if __name__ == "__main__":
    main()
