"""A chat as it grows -> chat.completion.chunk events."""

from __future__ import annotations

from core.outputs import CompletionOutput, RequestOutput
from server.errors import encode
from server.openai import logprobs as logprob_shapes
from server.openai.chat_request import Chat
from server.openai.chunks import Chunks
from server.state import ServerState


class ChatChunks(Chunks):
    """The chunks of one chat. Each piece holds everything that is ready."""

    def __init__(self, state: ServerState, chat: Chat) -> None:
        self._state, self._chat = state, chat
        body = chat.body
        self._answers = [chat.answer() for _ in range(chat.params.n)]
        super().__init__(
            body,
            chat.params,
            {"id": chat.id, "object": "chat.completion.chunk", "created": chat.created_s, "model": chat.model},
            [chat.prompt],
            before_text=b'"delta":{"content":',
            after_text=b'},"logprobs":null,"finish_reason":null}',
            # parsers have to see whether there is more to say than text
            plain=self._answers[0].plain and not (body.logprobs or body.return_token_ids),
        )

    def _begin(self) -> list[bytes]:
        """Whose turn it is, in every answer."""
        chat = self._chat
        delta = encode({"role": self._state.options.response_role, "content": chat.echo})
        extra = b',"prompt_token_ids":' + encode(chat.prompt) if chat.body.return_token_ids else b""
        return [self._chunk(at, delta, extra=extra) for at in range(chat.params.n)]

    def _rich(self, at: int, number: int, new: CompletionOutput, output: RequestOutput) -> list[bytes]:
        body, answer, ended = self._chat.body, self._answers[at], new.finish_reason
        self._num_output += len(new.token_ids)
        deltas = [answer.feed(new.text, new.token_ids)]
        if ended is not None:
            deltas.append(answer.finish())
        logprobs = b"null"
        if body.logprobs and new.logprobs:
            logprobs = encode(
                logprob_shapes.chat(
                    self._state,
                    new.logprobs,
                    body.top_logprobs or 0,
                    as_ids=bool(body.return_tokens_as_token_ids),
                )
            )
        extra = b',"token_ids":' + encode(new.token_ids) if body.return_token_ids else b""
        chunks = []
        for delta in deltas:
            if body.include_reasoning is False:
                delta.reasoning = ""
            if delta or logprobs != b"null" or (extra and new.token_ids):
                chunks.append(self._chunk(at, encode(delta.encoded()), logprobs=logprobs, extra=extra))
                logprobs, extra = b"null", b""
        if ended is not None:
            reason = encode(self._chat.finish_reason(ended, answer))
            chunks.append(self._chunk(at, b"{}", reason, extra=b',"stop_reason":' + encode(new.stop_reason)))
        return chunks

    def _chunk(
        self, at: int, delta: bytes, finish: bytes = b"null", logprobs: bytes = b"null", extra: bytes = b""
    ) -> bytes:
        return b"".join(
            (
                self._choice[at],
                b'"delta":',
                delta,
                b',"logprobs":',
                logprobs,
                b',"finish_reason":',
                finish,
                extra,
                b"}",
                self._tail(),
            )
        )
