"""What the engine reports -> RequestOutputs. Text is made late: once at the end, unless someone watches.

A slow consumer gets fewer, longer deltas: what is new gathers in the sequence until it is taken.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from core.errors import BackplaneError, EngineDeadError, QueueFullError, RequestAbortedError, RequestError
from core.messages import AddRequest, EngineStats, Finished, Logprobs, StepOutput
from core.outputs import (
    CompletionOutput,
    EmbeddingOutput,
    EmbeddingRequestOutput,
    RequestMetrics,
    RequestOutput,
    TokenLogprob,
)
from core.pooling import finish
from core.text.detokenizer import Detokenizer, output_text
from core.text.tokenizer import Tokenizer

OutputKind = Literal["cumulative", "delta", "final"]


class Observer(Protocol):
    """Told of what happens; must be quick."""

    def request_started(self, request: AddRequest) -> None:
        """A request is about to go to the engine. Called where the caller runs, in its context."""

    def request_finished(self, output: RequestOutput, finished: list[Finished]) -> None:
        """Every sequence has ended. `finished` holds one entry a sequence, in the order in which they ended."""

    def tokens(self, count: int, gap_s: float) -> None:
        """`count` tokens of a stream came `gap_s` after the ones before."""

    def stats(self, stats: EngineStats) -> None: ...


@dataclass(slots=True)
class Sequence:
    """One answer as it grows."""

    handle: int
    index: int
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[Logprobs] = field(default_factory=list)
    detokenizer: Detokenizer | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    error: str | None = None
    first_token_time_s: float = 0.0
    last_token_time_s: float = 0.0
    taken: tuple[int, int, int] = (0, 0, 0)
    """Tokens, characters and logprobs that deltas have shown."""
    told: bool = False
    """A delta has shown the end."""
    num_cached_tokens: int = 0
    """Of the prompt, from the prefix cache. A stream knows it with its first token."""


@dataclass(slots=True)
class Group:
    """All answers to one prompt."""

    request: AddRequest
    prompt: str | None
    prompt_ids: list[int]
    kind: OutputKind
    sequences: list[Sequence]
    notify: Callable[[], None]
    prompt_logprobs: list[Logprobs | None] | None = None
    finished: list[Finished] = field(default_factory=list)
    failure: BackplaneError | None = None
    """The engine refused the request, or is gone."""
    embedding: np.ndarray | None = None
    """float32 [hidden], of a request that pools."""
    eos_token_ids: frozenset[int] = frozenset()
    """The model's ends, none with ignore_eos."""
    num_open: int = field(init=False)
    """Sequences that have not ended."""
    hidden_ends: frozenset[int] = field(init=False)
    """Token ids that end the output and are no part of its text."""
    by_deltas: bool = field(init=False)
    """What is new is shown as it comes; best_of has to wait for the end."""
    metrics: RequestMetrics = field(init=False)
    """Of every output until a sequence has ended."""

    def __post_init__(self) -> None:
        params = self.request.params
        self.num_open = len(self.sequences)
        self.by_deltas = self.kind == "delta" and params.num_sequences == params.n
        self.metrics = RequestMetrics(self.request.arrival_time_s)
        ends = self.eos_token_ids.union(params.stop_token_ids)
        self.hidden_ends = frozenset() if params.include_stop_str_in_output else ends

    @property
    def done(self) -> bool:
        return not self.num_open


class OutputProcessor:
    """Step by step, tokens of all requests -> their outputs. Text is made when somebody takes it."""

    def __init__(self, tokenizer: Tokenizer | None, eos_token_ids: Iterable[int] = ()) -> None:
        self.tokenizer = tokenizer
        self._eos_token_ids = frozenset(eos_token_ids)
        self.groups: dict[str, Group] = {}
        self.observers: list[Observer] = []
        self.last_stats = EngineStats()
        self._sequences: dict[int, tuple[Group, Sequence]] = {}

    def add(
        self,
        request: AddRequest,
        prompt: str | None,
        prompt_ids: list[int],
        kind: OutputKind,
        notify: Callable[[], None],
    ) -> Group:
        if request.request_id in self.groups:
            raise RequestError(f"request id {request.request_id!r} is in use", param="request_id")
        params = request.params
        sequences = [Sequence(h, i) for i, h in enumerate(request.handles)]
        if request.stream and self.tokenizer is not None and params.detokenize:
            for s in sequences:
                s.detokenizer = Detokenizer(
                    self.tokenizer,
                    tuple(params.stop or ()),
                    params.include_stop_str_in_output,
                    params.skip_special_tokens,
                    params.min_tokens,
                )
        eos = frozenset[int]() if params.ignore_eos else self._eos_token_ids
        group = Group(request, prompt, prompt_ids, kind, sequences, notify, eos_token_ids=eos)
        if params.prompt_logprobs is not None:
            group.prompt_logprobs = [None]
        self.groups[request.request_id] = group
        for s in sequences:
            self._sequences[s.handle] = (group, s)
        for observer in self.observers:
            observer.request_started(request)
        return group

    def process(self, step: StepOutput) -> list[int]:
        """Take in a step. -> handles to abort in the engine: their stop string came."""
        aborts: list[int] = []
        touched: dict[int, Group] = {}
        time_s = step.time_s
        gaps: dict[float, int] = {}  # those that run together have the same one
        for handle, positions in step.logprobs.items():
            if found := self._sequences.get(handle):
                found[1].logprobs.extend(positions)
        for handle, prompt_positions in step.prompt_logprobs.items():
            found = self._sequences.get(handle)
            if found and found[1].index == 0 and found[0].prompt_logprobs is not None:
                found[0].prompt_logprobs.extend(prompt_positions)
        for handle, num_cached in step.num_cached.items():
            if found := self._sequences.get(handle):
                found[1].num_cached_tokens = num_cached
        handles = np.frombuffer(step.handles, np.int64).tolist()
        tokens = np.frombuffer(step.token_ids, np.int32).tolist()
        find = self._sequences.get
        for handle, token in zip(handles, tokens, strict=True):
            found = find(handle)
            if found is None:
                continue  # ended here by a stop string or an abort, and the engine did not know yet
            group, sequence = found
            if sequence.last_token_time_s:
                gap_s = time_s - sequence.last_token_time_s
                gaps[gap_s] = gaps.get(gap_s, 0) + 1
            else:
                sequence.first_token_time_s = time_s
            sequence.last_token_time_s = time_s
            sequence.token_ids.append(token)
            detokenizer = sequence.detokenizer
            if detokenizer is not None and token not in group.hidden_ends:
                sequence.text += detokenizer.feed_one(token)
                if (stop := detokenizer.stopped_by) is not None:
                    aborts.append(handle)
                    self._end_here(group, sequence, "stop", stop)
            touched[id(group)] = group
        for observer in self.observers:
            for gap_s, count in gaps.items():
                observer.tokens(count, gap_s)
        for finished in step.finished:
            found = self._sequences.get(finished.handle)
            if found is not None:
                self._finish(*found, finished)
                touched[id(found[0])] = found[0]
        if step.stats is not None:
            self.last_stats = step.stats
            for observer in self.observers:
                observer.stats(step.stats)
        for group in touched.values():
            if group.done:
                self._close(group)
            if group.done or group.kind != "final":
                group.notify()
        return aborts

    def _finish(self, group: Group, sequence: Sequence, finished: Finished) -> None:
        params = group.request.params
        group.finished.append(finished)
        sequence.num_cached_tokens = finished.num_cached_tokens
        if finished.token_ids is not None:
            sequence.token_ids = np.frombuffer(finished.token_ids, np.int32).tolist()
            if self.tokenizer is not None and params.detokenize:
                ids = sequence.token_ids
                if ids and finished.reason == "stop" and ids[-1] in group.hidden_ends:
                    ids = ids[:-1]
                sequence.text = output_text(self.tokenizer, ids, params.skip_special_tokens)
        elif sequence.detokenizer is not None:
            sequence.text += sequence.detokenizer.finish()
        if finished.embedding is not None:
            group.embedding = np.frombuffer(finished.embedding, np.float32)
        sequence.error = finished.error
        if finished.reason == "error" and not finished.num_prompt_tokens:
            kind = QueueFullError if finished.stop_reason == "QueueFullError" else RequestError
            group.failure = kind(finished.error or "the engine refused the request", param=finished.param)
        stop_reason = finished.stop_reason
        if sequence.detokenizer is not None and (stop := sequence.detokenizer.stopped_by):
            self._end(group, sequence, "stop", stop)
        else:
            self._end(group, sequence, finished.reason, stop_reason)

    def _end(self, group: Group, sequence: Sequence, reason: str, stop_reason: int | str | None) -> None:
        if not sequence.finish_reason:
            group.num_open -= 1
        sequence.finish_reason, sequence.stop_reason = reason, stop_reason
        self._sequences.pop(sequence.handle, None)

    def _end_here(
        self, group: Group, sequence: Sequence, reason: str, stop_reason: str | None = None, error: str | None = None
    ) -> None:
        """End a sequence that the engine has not ended, and write the report that it would have sent."""
        request = group.request
        group.finished.append(
            Finished(
                handle=sequence.handle,
                reason=reason,
                stop_reason=stop_reason,
                error=error,
                num_prompt_tokens=len(group.prompt_ids),
                num_output_tokens=len(sequence.token_ids),
                num_cached_tokens=sequence.num_cached_tokens,
                arrival_time_s=request.arrival_time_s,
                first_token_time_s=sequence.first_token_time_s,
                finish_time_s=time.monotonic(),
            )
        )
        self._end(group, sequence, reason, stop_reason)

    def _close(self, group: Group) -> None:
        if self.groups.pop(group.request.request_id, None) is None:
            return
        if self.observers:
            output = self.build(group, "final")
            for observer in self.observers:
                observer.request_finished(output, group.finished)

    def fail(self, message: str) -> None:
        """The engine is gone: every sequence ends with an error."""
        for group in list(self.groups.values()):
            for s in group.sequences:
                if s.finish_reason is None:
                    s.error = message
                    self._end_here(group, s, "error", error=message)
            group.failure = EngineDeadError(message)
            self._close(group)
            group.notify()

    def drop(self, group: Group) -> list[int]:
        """The caller is gone. -> handles to abort in the engine."""
        handles = [s.handle for s in group.sequences if s.finish_reason is None]
        for s in group.sequences:
            if s.finish_reason is None:
                self._end_here(group, s, "abort")
        if handles:
            self._close(group)
        self.groups.pop(group.request.request_id, None)
        return handles

    # ---- building outputs

    def build_embedding(self, group: Group, dimensions: int | None, normalize: bool) -> EmbeddingRequestOutput:
        """The vector of a request that pools. Raises what it ended with instead."""
        if group.failure is not None:
            raise group.failure
        (sequence,) = group.sequences
        if group.embedding is None:
            if sequence.finish_reason == "error":
                raise BackplaneError(sequence.error or "the engine could not finish this request")
            raise RequestAbortedError("the request was aborted before it was done")
        vector = finish(group.embedding, dimensions, normalize)
        return EmbeddingRequestOutput(
            group.request.request_id,
            group.prompt,
            group.prompt_ids,
            EmbeddingOutput(vector),
            group.finished[0].num_cached_tokens,
        )

    def take(self, group: Group) -> RequestOutput | None:
        """What there is to show now, or None."""
        if group.by_deltas:
            return self._delta(group)
        if group.kind == "cumulative" or group.done:
            return self.build(group, group.kind)
        return None

    def build(self, group: Group, kind: OutputKind) -> RequestOutput:
        sequences = group.sequences
        params = group.request.params
        if params.num_sequences > params.n and group.done:
            # best_of: the likeliest answers, by mean log probability
            sequences = sorted(sequences, key=_mean_logprob, reverse=True)[: params.n]
        outputs = [self._completion(group, s, i, (0, 0, 0)) for i, s in enumerate(sequences)]
        return self._output(group, outputs)

    def _delta(self, group: Group) -> RequestOutput | None:
        outputs = []
        for s in group.sequences:
            now = (len(s.token_ids), len(s.text), len(s.logprobs))
            if now == s.taken and (s.finish_reason is None or s.told):
                continue
            outputs.append(self._completion(group, s, s.index, s.taken))
            s.taken, s.told = now, s.finish_reason is not None
        return self._output(group, outputs) if outputs else None

    def _completion(self, group: Group, s: Sequence, index: int, since: tuple[int, int, int]) -> CompletionOutput:
        output = CompletionOutput(
            index, s.text[since[1] :], s.token_ids[since[0] :], s.finish_reason, s.stop_reason, error=s.error
        )
        if group.request.params.logprobs is not None:
            output.cumulative_logprob = sum(p.logprobs[0] for p in s.logprobs)
            output.logprobs = [self._candidates(group, p) for p in s.logprobs[since[2] : len(s.token_ids)]]
        return output

    def _candidates(self, group: Group, position: Logprobs) -> list[TokenLogprob]:
        detokenize = group.request.params.detokenize
        text = self.tokenizer.token_text if self.tokenizer and detokenize else lambda _: ""
        return [
            TokenLogprob(i, p, r, text(i))
            for i, p, r in zip(position.token_ids, position.logprobs, position.ranks, strict=True)
        ]

    def _output(self, group: Group, outputs: list[CompletionOutput]) -> RequestOutput:
        if group.finished:
            first = group.finished[0]
            metrics = RequestMetrics(
                first.arrival_time_s,
                first.first_scheduled_time_s,
                first.first_token_time_s,
                first.finish_time_s or time.monotonic(),
                sum(f.num_preemptions for f in group.finished),
            )
        else:
            metrics = group.metrics
        prompt_logprobs = None
        if group.prompt_logprobs is not None:
            prompt_logprobs = [self._candidates(group, p) if p else None for p in group.prompt_logprobs]
        return RequestOutput(
            group.request.request_id,
            group.prompt,
            group.prompt_ids,
            outputs,
            group.done,
            group.sequences[0].num_cached_tokens,  # the others share its prompt
            prompt_logprobs,
            metrics,
        )


def _mean_logprob(sequence: Sequence) -> float:
    if not sequence.logprobs:
        return float("-inf")
    return sum(p.logprobs[0] for p in sequence.logprobs) / len(sequence.logprobs)
