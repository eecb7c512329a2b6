"""Engine: the whole engine in the caller's process, for scripts. No child processes, no threads that it needs."""

from __future__ import annotations

import gc
import logging
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from core.beam_search import BeamSearchParams
from core.config import EngineConfig
from core.engine.beams import PromptBeams
from core.engine.client import ClientSide
from core.engine.input_processor import Prompt
from core.engine.loop import EngineLoop
from core.engine.output_processor import Group, OutputKind
from core.errors import EngineDeadError, RequestError
from core.messages import Abort, AddRequest, EngineStats, FromEngine, StepOutput
from core.outputs import EmbeddingRequestOutput, RequestOutput
from core.sampling_params import SamplingParams

logger = logging.getLogger("backplane")

Params = SamplingParams | Sequence[SamplingParams] | None


class Engine:
    """`Engine(model=..., **options)`; options are those of core/config.py. A context manager."""

    def __init__(self, model: str = "demo", **options: Any) -> None:
        self.config = EngineConfig.from_options(model=model, **options)
        self._lock = threading.RLock()
        self._closed = False
        self._inbox: list[FromEngine] = []
        self._loop = EngineLoop(self.config, lambda message, _: self._inbox.append(message))
        self.config, self.ready = self._loop.config, self._loop.ready
        self._client = ClientSide(self.config, self.ready)
        for name, choice in self.ready.choices.items():
            logger.info("%s: %s", name, choice)
        # a full collection would hold the device up, 0.14 s on an H100's host: until `shutdown` what lives now is no part of
        # them. What the caller froze stays the caller's.
        self._freezes = bool(self.config.scheduler.async_scheduling) and not gc.get_freeze_count()
        if self._freezes:
            gc.freeze()

    @property
    def tokenizer(self) -> Any:
        """core.text.tokenizer.Tokenizer; None with skip_tokenizer_init."""
        return self._client.tokenizer

    def generate(
        self,
        prompts: Any,
        params: Params = None,
        *,
        use_tqdm: bool = True,
        stream: bool = False,
        priority: int = 0,
        sampling_params: Params = None,
    ) -> Any:
        """One prompt (text, token ids or a dict) or a list of them -> outputs in the same order.

        Raises RequestError, before anything runs, if any prompt is wrong. `stream=True` takes one prompt and gives an
        iterator of deltas.
        """
        params = params if params is not None else sampling_params
        batch = _as_batch(prompts)
        if stream:
            if len(batch) != 1:
                raise RequestError("stream=True takes one prompt", param="stream")
            return self.stream(batch[0], params[0] if isinstance(params, Sequence) else params)
        wishes = self._params(params, len(batch))
        with self._lock:
            groups = self._add_all(batch, wishes, "final", priority)
            self._finish(groups, use_tqdm)
            return [self._result(g) for g in groups]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[RequestOutput]:
        """Deltas of one prompt; leaving the iterator aborts the request."""
        with self._lock:
            (group,) = self._add_all([prompt], self._params(params, 1), "delta", 0)
        try:
            while True:
                with self._lock:
                    output = self._client.outputs.take(group)
                    if output is None and not group.done:
                        self._step()
                        continue  # what the step gave may be the end
                if output is not None:
                    yield output
                if group.done and (output is None or output.finished):
                    self._result(group)
                    return
        finally:
            with self._lock:
                self._drop(group)

    def chat(
        self,
        messages: Sequence[Any],
        params: Params = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        use_tqdm: bool = True,
        stream: bool = False,
        sampling_params: Params = None,
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **template_options: Any,
    ) -> Any:
        """One conversation (a list of messages) or a list of conversations.

        template_options: add_generation_prompt, continue_final_message, and what the template itself reads
        (`enable_thinking=False`); chat_template_kwargs: the same as a mapping; chat_template: in place of the model's.
        Raises RequestError for an option that neither this method nor the template knows.
        """
        params = params if params is not None else sampling_params
        options = {**(chat_template_kwargs or {}), **template_options}
        template = self._client.template_for(chat_template, options)
        conversations = [messages] if messages and isinstance(messages[0], Mapping) else list(messages)
        prompts = []
        for conversation in conversations:
            text = self._client.render_with(template, conversation, tools, **options)
            prompts.append({"prompt": text, "prompt_token_ids": self._client.inputs.tokenizer.encode(text, False)})  # type: ignore[union-attr]
        return self.generate(prompts, params, use_tqdm=use_tqdm, stream=stream)

    def beam_search(self, prompts: Any, params: BeamSearchParams) -> list[RequestOutput]:
        """One prompt or a list of them -> outputs in the same order, each with its likeliest answers, the best first.

        Raises RequestError if any prompt is wrong.
        """
        with self._lock:
            beams = [PromptBeams(self._client, *self._client.inputs.split(p), params) for p in _as_batch(prompts)]
            while running := [(b, requests) for b in beams if (requests := b.requests)]:
                asked = [ids for _, requests in running for ids in requests]
                wishes = [b.wish for b, requests in running for _ in requests]
                outputs = iter(self.generate(asked, wishes, use_tqdm=False))
                for b, requests in running:
                    b.take([next(outputs) for _ in requests])
            return [b.output() for b in beams]

    def embed(
        self,
        prompts: Any,
        *,
        dimensions: int | None = None,
        normalize: bool = True,
        use_tqdm: bool = True,
        priority: int = 0,
    ) -> list[EmbeddingRequestOutput]:
        """One prompt or a list of them -> their vectors in the same order, by the engine's `pooling_type`.

        dimensions: the first so many numbers alone. Raises RequestError, before anything runs, if a prompt is wrong.
        """
        with self._lock:
            if self._closed:
                raise EngineDeadError("the engine was shut down")
            made = []
            for prompt in _as_batch(prompts):
                text, ids = self._client.inputs.split(prompt)
                rule = self._client.pooling_type
                request = self._client.inputs.make_pooling(ids, rule, None, priority=priority, cache_salt="")
                made.append((text, ids, request))
            groups = self._start(made, "final")
            self._finish(groups, use_tqdm)
            return [self._client.outputs.build_embedding(g, dimensions, normalize) for g in groups]

    def stats(self) -> EngineStats:
        """Requests, blocks and counters right now."""
        return self._loop.scheduler.stats()

    def reset_prefix_cache(self) -> None:
        """Forget every cached prefix; running requests keep their blocks."""
        with self._lock:
            self._loop.scheduler.reset_prefix_cache()

    def shutdown(self) -> None:
        """Give the memory back. Safe to call twice."""
        if not self._closed:
            self._closed = True
            self._loop.shutdown()
            if self._freezes:
                gc.unfreeze()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.shutdown()

    # ----

    def _params(self, params: Params, count: int) -> list[SamplingParams]:
        if params is None:
            params = SamplingParams()
        if isinstance(params, SamplingParams):
            return [params] * count
        if len(params) != count:
            raise RequestError(f"{count} prompts came with {len(params)} sampling params; give one, or one each")
        return list(params)

    def _add_all(
        self, prompts: list[Prompt], params: list[SamplingParams], kind: OutputKind, priority: int
    ) -> list[Group]:
        if self._closed:
            raise EngineDeadError("the engine was shut down")
        made = []
        for prompt, wish in zip(prompts, params, strict=True):
            text, ids = self._client.inputs.split(prompt)
            ids = self._client.inputs.shorten(ids, wish)
            stream = kind != "final" or bool(wish.stop)
            made.append(
                (text, ids, self._client.inputs.make(ids, wish, None, priority=priority, cache_salt="", stream=stream))
            )
        return self._start(made, kind)

    def _start(self, made: list[tuple[str | None, list[int], AddRequest]], kind: OutputKind) -> list[Group]:
        groups = []
        for text, ids, request in made:
            groups.append(self._client.outputs.add(request, text, ids, kind, lambda: None))
            self._loop.handle(request)
        return groups

    def _finish(self, groups: list[Group], use_tqdm: bool) -> None:
        try:
            self._run(groups, use_tqdm and len(groups) > 1 and sys.stderr.isatty())
        except BaseException:
            for group in groups:
                self._drop(group)
            raise

    def _run(self, groups: list[Group], show_progress: bool) -> None:
        if not show_progress:
            while not all(g.done for g in groups):
                self._step()
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns) as progress:
            task = progress.add_task("requests", total=len(groups))
            while not all(g.done for g in groups):
                self._step()
                progress.update(task, completed=sum(g.done for g in groups))

    def _step(self) -> None:
        try:
            self._loop.step()
        except BaseException:
            # the device's state is unknown now
            self._closed = True
            raise
        messages, self._inbox[:] = list(self._inbox), []
        for message in messages:
            if isinstance(message, StepOutput):
                aborts = self._client.outputs.process(message)
                if aborts:
                    self._loop.handle(Abort(aborts))

    def _drop(self, group: Group) -> None:
        handles = self._client.outputs.drop(group)
        if handles and not self._closed:
            self._loop.handle(Abort(handles))

    def _result(self, group: Group) -> RequestOutput:
        if group.failure is not None:
            raise group.failure
        return self._client.outputs.build(group, "final")


def _as_batch(prompts: Any) -> list[Any]:
    if isinstance(prompts, str | dict):
        return [prompts]
    try:
        batch = list(prompts)
    except TypeError:
        raise RequestError(
            f"a prompt is text, token ids or a dict, and prompts are a list of such, not {type(prompts).__name__}",
            param="prompt",
        ) from None
    if batch and all(isinstance(p, int) for p in batch):
        return [batch]
    return batch
