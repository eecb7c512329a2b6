"""A prompt's beam search as an engine sees it: requests for one token each, and an output in the end."""

from __future__ import annotations

from collections.abc import Sequence

from core.beam_search import BeamSearch, BeamSearchParams
from core.engine.client import ClientSide
from core.errors import BackplaneError, RequestAbortedError
from core.outputs import CompletionOutput, RequestOutput
from core.sampling_params import SamplingParams
from core.text.detokenizer import output_text


class PromptBeams:
    """Send `requests` with the parameters `wish` and `take` their outputs, until there are none; then there is an `output`."""

    def __init__(self, client: ClientSide, text: str | None, prompt_ids: list[int], params: BeamSearchParams) -> None:
        ready = client.inputs.ready
        prompt_ids = client.inputs.shorten(prompt_ids, params)
        ends = frozenset(params.stop_token_ids).union(() if params.ignore_eos else ready.eos_token_ids)
        room = ready.max_model_len - len(prompt_ids)  # too little is refused with the first request
        self._params, self._tokenizer = params, client.tokenizer
        self._text, self._prompt_ids = text, prompt_ids
        self._eos = frozenset(ready.eos_token_ids)
        self._search = BeamSearch(params, ends, room if params.max_tokens is None else min(room, params.max_tokens))
        self._first: RequestOutput | None = None
        self._last: RequestOutput | None = None
        self.wish = SamplingParams(
            temperature=0,
            max_tokens=1,
            logprobs=max(self._search.num_candidates, params.logprobs or 0),
            stop_token_ids=params.stop_token_ids,
            detokenize=params.logprobs is not None,
        )

    @property
    def requests(self) -> list[list[int]]:
        """A prompt for each beam that runs."""
        return [self._prompt_ids + beam.token_ids for beam in self._search.running]

    def take(self, outputs: Sequence[RequestOutput]) -> None:
        """What came, in the order of `requests`."""
        found = []
        for output in outputs:
            (answer,) = output.outputs
            if answer.finish_reason == "error":
                raise BackplaneError(answer.error or "the engine could not finish this request")
            if not answer.logprobs:
                raise RequestAbortedError("the request was aborted before it was done")
            # the chosen token stands among the likeliest ones too
            found.append(list({c.token_id: c for c in answer.logprobs[0]}.values()))
        self._search.take(found)
        self._first, self._last = self._first or outputs[0], outputs[-1]

    def output(self, request_id: str | None = None) -> RequestOutput:
        """The answers, the best first."""
        assert self._first is not None and self._last is not None
        answers = []
        for i, beam in enumerate(self._search.answers):
            ids, stop = beam.token_ids, None
            if beam.finish_reason == "stop":
                stop = ids[-1] if self._params.ignore_eos or ids[-1] not in self._eos else None
                ids = ids[:-1]
            text = output_text(self._tokenizer, ids, self._params.skip_special_tokens) if self._tokenizer else ""
            answers.append(
                CompletionOutput(
                    i,
                    text,
                    beam.token_ids,
                    beam.finish_reason,
                    stop,
                    beam.cumulative_logprob,
                    beam.logprobs if self._params.logprobs is not None else None,
                )
            )
        metrics = self._first.metrics
        metrics.finish_time_s = self._last.metrics.finish_time_s
        return RequestOutput(
            request_id if request_id is not None else self._first.request_id,
            self._text,
            self._prompt_ids,
            answers,
            True,
            self._first.num_cached_tokens,
            metrics=metrics,
        )
