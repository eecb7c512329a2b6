"""A message as it grows -> its events."""

from __future__ import annotations

from typing import Any

from core.outputs import RequestOutput
from server.anthropic.errors import error_body
from server.anthropic.reply import Reply, content_block
from server.errors import encode, rename
from server.openai.blocks import Change, Steps

_DELTAS = {
    "reasoning": ("thinking_delta", "thinking"),
    "text": ("text_delta", "text"),
    "call": ("input_json_delta", "partial_json"),
}


class MessageEvents:
    """The events of one message."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._steps = Steps(reply.chat)
        self._begun = False
        self.over = False

    def render(self, output: RequestOutput, number: int = 0) -> bytes:
        reply, step = self._reply, self._steps.take(output)
        pieces = []
        if not self._begun:
            self._begun = True
            begin = _event({"type": "message_start", "message": reply.message([], reply.usage(None))})
            pieces += [begin, _event({"type": "ping"})]
        pieces += [_change(c) for c in step.changes]
        if step.finish_reason is not None:
            self.over = True
            delta = {"type": "message_delta", "delta": reply.ended(step), "usage": reply.usage(step)}
            pieces += [_event(delta), _event({"type": "message_stop"})]
        return b"".join(pieces)

    def end(self) -> bytes:
        """The last event of a message says that it is over."""
        return b""

    def fail(self, error: BaseException) -> bytes:
        return _event(error_body(error, self._reply.request_id)[1])

    def rename(self, error: BaseException) -> None:
        rename(error, self._reply.names)


def _event(data: dict[str, Any]) -> bytes:
    return b"event: " + data["type"].encode() + b"\ndata: " + encode(data) + b"\n\n"


def _change(change: Change) -> bytes:
    index = change.index
    if change.what == "open":
        block = content_block(change.block, empty=True)
        return _event({"type": "content_block_start", "index": index, "content_block": block})
    if change.what == "more":
        kind, key = _DELTAS[change.block.kind]
        delta = {"type": kind, key: change.piece}
        return _event({"type": "content_block_delta", "index": index, "delta": delta})
    return _event({"type": "content_block_stop", "index": index})
