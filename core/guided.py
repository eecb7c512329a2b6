"""Guided decoding in the engine: constraints are compiled off the step path, sequences get matchers, steps get masks.

Owns the compile workers, the cache of compiled grammars and every sequence's matcher. Knows no grammar: backends are
plugins. One thread (the engine loop's) calls the methods; compiling happens in daemon threads.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import queue
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from core.batch import Bitmasks
from core.config import EngineConfig
from core.errors import PluginError, RequestError
from core.interfaces.guided import (
    BatchFill,
    Grammar,
    GuidedBackend,
    UnsupportedConstraintError,
    Vocabulary,
)
from core.registry import Registry
from core.sampling_params import GuidedDecodingParams

log = logging.getLogger("backplane.guided")

NUM_WORKERS = 2
COMPILE_TIMEOUT_S = 20.0
MAX_CONSTRAINT_BYTES = 4 << 20
MAX_SCHEMA_BYTES = 1 << 20
"""Reading and writing JSON holds Python's lock: 4 MB stopped the steps for 0.3 s."""
MAX_ABANDONED = 4
"""Compilations that ran over their time and cannot be stopped; with so many alive no new one begins."""
MAX_CACHED = 256
MAX_CACHED_BYTES = 512 << 20


@dataclass(slots=True)
class _Compiled:
    backend: GuidedBackend
    grammar: Grammar
    num_bytes: int


@dataclass(slots=True)
class _Job:
    key: bytes
    params: GuidedDecodingParams
    handles: list[int]
    result: _Compiled | str | None = None


@dataclass(slots=True)
class _Sequence:
    backend: GuidedBackend
    matcher: Any
    """core.interfaces.guided.Matcher; None if `error` says that there is none"""
    error: str | None = None
    ended: bool = False
    num_after_end: int = 0
    """Tokens accepted once the sequence had ended; rollback undoes them first."""


@dataclass(slots=True)
class _Box:
    """What a compile thread leaves behind."""

    result: _Compiled | str | None = None
    done: threading.Event = field(default_factory=threading.Event)


class GuidedManager:
    """Grammars of one engine: compiled in threads under a time limit, cached; a matcher for each running sequence."""

    def __init__(
        self,
        registry: Registry,
        config: EngineConfig,
        vocabulary: Vocabulary,
        *,
        on_ready: Callable[[], None] | None = None,
        buffer: Callable[[int, int], np.ndarray] | None = None,
        compile_timeout_s: float = COMPILE_TIMEOUT_S,
    ) -> None:
        """on_ready: called from a worker's thread when `poll` has something; wakes an idle loop. buffer: of masks, as
        PinnedMasks.mask_buffer gives it"""
        self._registry = registry
        self._wanted = config.plugins.guided_backend
        self._vocabulary = vocabulary
        self._on_ready = on_ready
        self._timeout_s = compile_timeout_s
        self._eos = frozenset(vocabulary.eos_token_ids)
        words = (vocabulary.size + 31) // 32
        self._eos_row = np.zeros(words, np.int32)
        for token in self._eos:
            self._eos_row.view(np.uint32)[token // 32] |= np.uint32(1 << (token % 32))
        self._buffer = buffer or (lambda lines, words: np.empty((lines, words), np.int32))
        self._lines = np.full((1, words), -1, np.int32)
        """A line that allows everything, then those of the last masks"""
        self._backends: dict[str, GuidedBackend] = {}
        self._backend_lock = threading.Lock()
        self._cache: OrderedDict[bytes, _Compiled] = OrderedDict()
        self._cached_bytes = 0
        self._jobs: dict[bytes, _Job] = {}
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._done: deque[_Job] = deque()
        self._workers: list[threading.Thread] = []
        self._abandoned: list[threading.Thread] = []
        self._ready: list[int] = []
        self._failed: list[tuple[int, str]] = []
        self._compiled: dict[int, _Compiled] = {}
        """Handles whose grammar is there and that have not started"""
        self._sequences: dict[int, _Sequence] = {}

    # ---- before admission

    @property
    def num_pending(self) -> int:
        """Handles that wait for a grammar, or for `poll` to tell of it."""
        return sum(len(j.handles) for j in self._jobs.values()) + len(self._ready) + len(self._failed)

    def prepare(self) -> None:
        """Build the backend that a first constraint is likely to want, here and now: one that reads a large vocabulary holds
        Python's lock for a second. What fails is told by the first request that meets it."""
        names = self._auto_names() if self._wanted == "auto" else [self._wanted]
        with contextlib.suppress(RequestError, PluginError):
            if names and self._eos:
                self._backend(names[0])

    def submit(self, handle: int, params: GuidedDecodingParams) -> None:
        """Have the constraint compiled for this sequence; `poll` tells when. Raises nothing."""
        try:
            source = msgspec.msgpack.encode(params)
        except (RecursionError, TypeError, ValueError) as error:
            self._failed.append((handle, f"the guided-decoding constraint cannot be read: {error}"))
            return
        is_schema = params.json is not None or params.structural_tag is not None
        most = MAX_SCHEMA_BYTES if is_schema else MAX_CONSTRAINT_BYTES
        if len(source) > most:
            self._failed.append(
                (
                    handle,
                    f"the guided-decoding constraint has {len(source)} bytes; at most {most} are read",
                )
            )
            return
        key = hashlib.blake2b(source, digest_size=20).digest()
        if (found := self._cache.get(key)) is not None:
            self._cache.move_to_end(key)
            self._compiled[handle] = found
            self._ready.append(handle)
        elif (job := self._jobs.get(key)) is not None:
            job.handles.append(handle)
        else:
            self._jobs[key] = job = _Job(key, params, [handle])
            self._queue.put(job)
            if len(self._workers) < NUM_WORKERS:
                worker = threading.Thread(target=self._work, name="guided-compile", daemon=True)
                self._workers.append(worker)
                worker.start()

    def poll(self) -> tuple[list[int], list[tuple[int, str]]]:
        """Handles that may `start`, and handles that failed, each with a message for its user. Never waits."""
        while self._done:
            job = self._done.popleft()
            self._jobs.pop(job.key, None)
            if isinstance(job.result, _Compiled):
                self._keep(job.key, job.result)
                self._compiled.update(dict.fromkeys(job.handles, job.result))
                self._ready.extend(job.handles)
            else:
                self._failed.extend((h, str(job.result)) for h in job.handles)
        ready, failed = self._ready, self._failed
        self._ready, self._failed = [], []
        return ready, failed

    def _keep(self, key: bytes, compiled: _Compiled) -> None:
        self._cache[key] = compiled
        self._cached_bytes += compiled.num_bytes
        while len(self._cache) > MAX_CACHED or (self._cached_bytes > MAX_CACHED_BYTES and len(self._cache) > 1):
            _, old = self._cache.popitem(last=False)
            self._cached_bytes -= old.num_bytes

    # ---- the workers

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            job.result = self._capped(job.params)
            self._done.append(job)
            if self._on_ready is not None:
                self._on_ready()

    def _capped(self, params: GuidedDecodingParams) -> _Compiled | str:
        """Compile in a thread of its own, so that one that cannot be interrupted does not block the next."""
        self._abandoned = [t for t in self._abandoned if t.is_alive()]
        if len(self._abandoned) >= MAX_ABANDONED:
            return "guided decoding is busy with constraints that take too long to compile; try again later"
        box = _Box()

        def compile_it() -> None:
            try:
                box.result = self._compile(params)
            except (RequestError, PluginError) as error:
                box.result = str(error)
            except RecursionError:
                box.result = "the guided-decoding constraint is nested too deeply"
            except Exception as error:  # a backend is a plugin; its failure ends this request alone
                log.warning("compiling a guided-decoding constraint failed", exc_info=True)
                box.result = f"the guided-decoding constraint could not be compiled: {type(error).__name__}: {error}"
            finally:
                box.done.set()

        thread = threading.Thread(target=compile_it, name="guided-compile-one", daemon=True)
        thread.start()
        if not box.done.wait(self._timeout_s):
            self._abandoned.append(thread)
            return f"the guided-decoding constraint took over {self._timeout_s:g} s to compile; simplify it"
        assert box.result is not None
        return box.result

    def _compile(self, params: GuidedDecodingParams) -> _Compiled:
        if not self._eos:
            raise RequestError("guided decoding needs a model with an end-of-sequence token, and this one has none")
        name = params.backend or self._wanted
        names = [name] if name != "auto" else self._auto_names()
        if not names:
            raise RequestError("no guided-decoding backend is installed; try the plugin 'guided'")
        # refusals by name, to say all of them when nobody is left
        refusals: list[str] = []
        for name in names:
            try:
                backend = self._backend(name)
            except PluginError as error:
                if len(names) == 1:
                    raise
                refusals.append(f"{name}: {str(error).splitlines()[0]}")
                continue
            if keywords := backend.unsupported(params):
                refusals.append(f"{name} does not support {', '.join(map(repr, keywords))}")
                continue
            try:
                grammar = backend.compile(params)
            except UnsupportedConstraintError as error:
                refusals.append(f"{name}: {error}")
                continue
            return _Compiled(backend, grammar, int(getattr(grammar, "num_bytes", 1 << 16)))
        raise RequestError("no guided-decoding backend can hold this constraint: " + "; ".join(refusals))

    def _auto_names(self) -> list[str]:
        entries = sorted(self._registry.of_kind("guided_backend"), key=lambda e: e.info.get("rank", 50))
        return list(dict.fromkeys(e.name for e in entries))

    def _backend(self, name: str) -> GuidedBackend:
        if (built := self._backends.get(name)) is not None:
            return built  # without waiting while another is built, which may load a library for seconds
        with self._backend_lock:
            if name not in self._backends:
                factory: Any = self._registry.get("guided_backend", name)
                try:
                    self._backends[name] = factory(self._vocabulary)
                except RequestError:
                    raise
                except Exception as error:  # e.g. a tokenizer that it cannot read; the next backend may
                    raise PluginError(f"guided_backend {name!r} cannot be built: {error}") from error
            return self._backends[name]

    # ---- running sequences

    def start(self, handle: int) -> None:
        """Give the sequence its matcher, at the beginning of the grammar."""
        compiled = self._compiled.pop(handle)
        try:
            self._sequences[handle] = _Sequence(compiled.backend, compiled.grammar.matcher())
        except Exception as error:  # plugin; `accept` reports it with the first token
            log.warning("a guided-decoding grammar gave no matcher", exc_info=True)
            failed = f"guided decoding failed: {type(error).__name__}: {error}"
            self._sequences[handle] = _Sequence(compiled.backend, None, failed)

    def accept(self, handle: int, token_ids: Sequence[int]) -> str | None:
        """Advance over sampled tokens. Returns what is wrong if the sequence cannot go on."""
        sequence = self._sequences[handle]
        for token in token_ids:
            if sequence.error is not None:
                break
            if sequence.ended:
                sequence.num_after_end += 1
                continue
            try:
                if sequence.matcher.accept(token):
                    sequence.ended = token in self._eos
                else:
                    why = sequence.matcher.error() or "the grammar does not allow it"
                    sequence.error = f"guided decoding cannot take token {token}: {why}"
            except Exception as error:  # plugin
                log.warning("a guided-decoding matcher failed", exc_info=True)
                sequence.error = f"guided decoding failed: {type(error).__name__}: {error}"
        return sequence.error

    def rollback(self, handle: int, num_tokens: int) -> None:
        """Take back the last accepted tokens."""
        sequence = self._sequences[handle]
        after = min(num_tokens, sequence.num_after_end)
        sequence.num_after_end -= after
        if num_tokens > after and sequence.error is None:
            sequence.matcher.rollback(num_tokens - after)
            sequence.ended = False

    def finished(self, handle: int) -> bool:
        """The document is complete; only EOS may follow."""
        sequence = self._sequences[handle]
        return sequence.error is None and (sequence.ended or bool(sequence.matcher.finished()))

    def forced(self, handle: int) -> list[int]:
        """Tokens that follow without choice."""
        sequence = self._sequences[handle]
        if sequence.ended or sequence.error:
            return []
        try:
            return list(sequence.matcher.forced())
        except Exception as error:  # plugin; `accept` reports it with the next token
            log.warning("a guided-decoding matcher failed", exc_info=True)
            sequence.error = f"guided decoding failed: {type(error).__name__}: {error}"
            return []

    def masks(self, pairs: Sequence[tuple[int, int]], only: Mapping[int, int] | None = None) -> Bitmasks:
        """Masks of (sample_index, handle), in order. The bits are one buffer, valid until the next call.

        only: handle -> the one token that it may take now
        """
        count = len(pairs)
        if len(self._lines) <= count:
            self._lines = self._buffer(1 + max(count, 2 * len(self._lines)), self._lines.shape[1])
            self._lines[0] = -1
        lines = self._lines[: 1 + count]
        bits = lines[1:]
        groups: dict[int, list[tuple[_Sequence, int]]] = {}
        for row, (_, handle) in enumerate(pairs):
            sequence = self._sequences[handle]
            if sequence.ended or sequence.error is not None:
                bits[row] = self._eos_row
            elif only and (token := only.get(handle)) is not None:
                bits[row] = 0
                bits[row].view(np.uint32)[token // 32] = np.uint32(1 << (token % 32))
            else:
                groups.setdefault(id(sequence.backend), []).append((sequence, row))
        for group in groups.values():
            self._fill(group, bits)
        return Bitmasks(np.fromiter((s for s, _ in pairs), np.int64, count), bits, lines)

    def _fill(self, group: list[tuple[_Sequence, int]], bits: np.ndarray) -> None:
        backend = group[0][0].backend
        try:
            if isinstance(backend, BatchFill):
                backend.fill_many([(s.matcher, row) for s, row in group], bits)
            else:
                for sequence, row in group:
                    sequence.matcher.fill(bits[row])
        except Exception as error:  # plugin; which of the group failed is not known
            log.warning("filling guided-decoding masks failed", exc_info=True)
            for sequence, row in group:
                sequence.error = f"guided decoding failed: {type(error).__name__}: {error}"
                bits[row] = self._eos_row
            return
        for sequence, row in group:
            if (problem := sequence.matcher.error()) is not None:
                # `accept` reports it with the next token
                sequence.error = f"guided decoding gave up: {problem}"
                bits[row] = self._eos_row

    def drop(self, handle: int) -> None:
        """The sequence is gone, in whatever state it was."""
        self._sequences.pop(handle, None)
        self._compiled.pop(handle, None)
        for job in self._jobs.values():
            if handle in job.handles:
                job.handles.remove(handle)
        if handle in self._ready:
            self._ready.remove(handle)
        self._failed = [f for f in self._failed if f[0] != handle]

    def shutdown(self) -> None:
        for _ in self._workers:
            self._queue.put(None)
        for backend in self._backends.values():
            if (close := getattr(backend, "close", None)) is not None:
                close()
