"""What the streams of chats and of completions have in common: chunks of JSON, usage, an error, [DONE].

Most chunks of most streams hold new text and nothing else: they are joined from bytes that are there already.
"""

from __future__ import annotations

from collections.abc import Iterable

from core.outputs import CompletionOutput, RequestOutput
from core.sampling_params import SamplingParams
from server.errors import encode
from server.openai.generation import check_end
from server.openai.schema import SamplingBody
from server.openai.usage import usage
from server.streaming import DONE, error_event


class Chunks:
    """Chunks of one stream, made of its outputs. Choice i * n + j is answer j to prompt i."""

    def __init__(
        self,
        body: SamplingBody,
        params: SamplingParams,
        head: dict[str, object],
        prompts: list[list[int]],
        *,
        before_text: bytes,
        after_text: bytes,
        plain: bool,
    ) -> None:
        """
        head: what every chunk begins with.
        prompts: token ids.
        before_text, after_text: what stands in a choice between its index and new text, and behind that.
        plain: nothing but new text has to be said before an answer ends.
        """
        options = body.stream_options
        self._include_usage = bool(options and options.include_usage)
        self._continuous = bool(options and options.continuous_usage_stats)
        self._head = b"data: " + encode(head)[:-1] + b',"choices":['
        self._n = params.n
        self._params = params
        num_choices = params.n * len(prompts)
        self._choice = [self._head + b'{"index":%d,' % at for at in range(num_choices)]
        self._before_text = [choice + before_text for choice in self._choice]
        self._after_text = after_text
        self._plain = plain
        self._num_prompt, self._num_output = sum(map(len, prompts)), 0
        self._cached = [0] * len(prompts)
        self._open = set(range(num_choices))
        self._begun = False

    @property
    def over(self) -> bool:
        return not self._open

    def render(self, output: RequestOutput, number: int = 0) -> bytes:
        self._cached[number] = output.num_cached_tokens
        pieces: list[bytes] = []
        if not self._begun:
            self._begun = True
            pieces += self._begin()
        for new in output.outputs:
            at = number * self._n + new.index
            if at not in self._open:
                continue
            if self._plain and new.finish_reason is None:
                self._num_output += len(new.token_ids)
                if new.text:
                    pieces += (self._before_text[at], encode(new.text), self._after_text, self._tail())
                continue
            if new.finish_reason is not None:
                check_end(new, self._params)
                self._open.discard(at)
            pieces += self._rich(at, number, new, output)
        return b"".join(pieces)

    def end(self) -> bytes:
        return (self._head + b'],"usage":' + self._counts() + b"}\n\n" if self._include_usage else b"") + DONE

    def fail(self, error: BaseException) -> bytes:
        return error_event(error)

    # ---- what the two say differently

    def rename(self, error: BaseException) -> None:
        """An error of a chat names what the client sent already."""

    def _begin(self) -> Iterable[bytes]:
        """What stands before all others."""
        return ()

    def _rich(self, at: int, number: int, new: CompletionOutput, output: RequestOutput) -> Iterable[bytes]:
        """Chunks of choice `at` that may hold anything, and its last ones. Counts their tokens."""
        raise NotImplementedError

    # ---- parts of a chunk

    def _tail(self) -> bytes:
        """What closes a chunk behind its choice."""
        if self._continuous:
            return b'],"usage":' + self._counts() + b"}\n\n"
        return b'],"usage":null}\n\n' if self._include_usage else b"]}\n\n"

    def _counts(self) -> bytes:
        return encode(usage(self._num_prompt, self._num_output, sum(self._cached)))
