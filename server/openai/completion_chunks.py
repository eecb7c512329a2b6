"""A completion as it grows -> text_completion events."""

from __future__ import annotations

from core.outputs import CompletionOutput, RequestOutput
from server.errors import encode
from server.openai.chunks import Chunks
from server.openai.completion_request import Completion, place
from server.openai.logprobs import TextLogprobs
from server.state import ServerState


class CompletionChunks(Chunks):
    """The chunks of one completion, of one prompt or several."""

    def __init__(self, state: ServerState, c: Completion) -> None:
        self._state, self._c = state, c
        body = c.body
        super().__init__(
            body,
            c.params,
            {"id": c.id, "object": "text_completion", "created": c.created_s, "model": c.model},
            [p.token_ids for p in c.prompts],
            before_text=b'"text":',
            after_text=b',"logprobs":null,"finish_reason":null,"stop_reason":null}',
            plain=not (body.echo or body.return_token_ids) and body.logprobs is None,
        )
        top, as_ids = body.logprobs or 0, bool(body.return_tokens_as_token_ids)
        self._shapes = [TextLogprobs(top, as_ids=as_ids) for _ in self._choice]
        self._fresh = [True] * len(self._choice)

    def rename(self, error: BaseException) -> None:
        place(error)

    def _rich(self, at: int, number: int, new: CompletionOutput, output: RequestOutput) -> tuple[bytes, ...]:
        state, c = self._state, self._c
        body, prompt = c.body, c.prompts[number]
        ended = "length" if new.finish_reason is not None and c.echo_only else new.finish_reason
        first, self._fresh[at] = self._fresh[at], False
        echo = bool(body.echo) and first
        text = "" if c.echo_only else new.text
        self._num_output += 0 if c.echo_only else len(new.token_ids)
        if echo:
            text = prompt.shown(state) + text
        logprobs = c.logprobs(state, prompt, self._shapes[at], new, output, with_prompt=echo)
        extra = b""
        if body.return_token_ids:
            extra = b',"token_ids":' + encode(new.token_ids)
            if first:
                extra += b',"prompt_token_ids":' + encode(prompt.token_ids)
        if not (text or ended or extra or (logprobs and logprobs["tokens"])):
            return ()
        return (
            self._before_text[at],
            encode(text),
            b',"logprobs":',
            encode(logprobs),
            b',"finish_reason":',
            encode(ended),
            b',"stop_reason":',
            encode(new.stop_reason),
            extra,
            b"}",
            self._tail(),
        )
