"""A response as it grows -> its events, in the order that OpenAI documents."""

from __future__ import annotations

from typing import Any

from core.outputs import RequestOutput
from server.errors import encode, rename, to_api_error
from server.openai.blocks import Block, Change, Steps
from server.openai.response_reply import Reply, item, item_id, part
from server.state import ServerState


class ResponseEvents:
    """The events of one response: numbers them and keeps its items."""

    def __init__(self, state: ServerState, reply: Reply) -> None:
        self._state, self._reply = state, reply
        self._steps = Steps(reply.chat)
        self.over = False
        self._number = 0
        self._items: list[dict[str, Any]] = []
        self._logprobs: list[dict[str, Any]] = []
        """Of the text that is open."""
        self._pending: list[dict[str, Any]] = []
        """Of tokens whose text has not come out yet."""

    def render(self, output: RequestOutput, number: int = 0) -> bytes:
        step = self._steps.take(output)
        pieces = [] if self._number else [self._begin()]
        if self._reply.wants_logprobs:
            self._pending += self._reply.logprobs(self._state, step.logprobs)
        pieces += [self._change(c) for c in step.changes]
        if step.changes and not any(c.block.kind == "text" for c in step.changes):
            self._pending.clear()
        if step.finish_reason is not None:
            self.over = True
            shape = self._reply.ended(self._state, step, self._items)
            pieces.append(self._event(f"response.{shape['status']}", response=shape))
        return b"".join(pieces)

    def end(self) -> bytes:
        """The last event of a response says that it is over."""
        return b""

    def fail(self, error: BaseException) -> bytes:
        answer = to_api_error(error)
        said = self._event("error", code=answer.code, message=answer.message, param=answer.param)
        return said + self._event("response.failed", response=self._reply.shape("failed", self._items, error=answer))

    def rename(self, error: BaseException) -> None:
        rename(error, self._reply.names)

    def _event(self, kind: str, **fields: Any) -> bytes:
        data = encode({"type": kind, "sequence_number": self._number, **fields})
        self._number += 1
        return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"

    def _begin(self) -> bytes:
        shape = self._reply.shape("in_progress", [])
        return self._event("response.created", response=shape) + self._event("response.in_progress", response=shape)

    def _change(self, change: Change) -> bytes:
        block, index = change.block, change.index
        if change.what == "open":
            self._items.append(item(block, item_id(block), "in_progress", []))
            self._logprobs = []
            opened = self._event("response.output_item.added", output_index=index, item=self._items[index])
            if block.kind == "call":
                return opened
            where = {"item_id": self._items[index]["id"], "output_index": index, "content_index": 0}
            return opened + self._event("response.content_part.added", **where, part=part(block, [], empty=True))
        where = {"item_id": self._items[index]["id"], "output_index": index}
        if block.kind != "call":
            where["content_index"] = 0
        if change.what == "more":
            return self._more(block, where, change.piece)
        return self._close(block, where, index)

    def _more(self, block: Block, where: dict[str, Any], piece: str) -> bytes:
        if block.kind == "call":
            return self._event("response.function_call_arguments.delta", **where, delta=piece)
        if block.kind == "reasoning":
            return self._event("response.reasoning_text.delta", **where, delta=piece)
        logprobs, self._pending = self._pending, []
        self._logprobs += logprobs
        shown = [{k: v for k, v in p.items() if k != "bytes"} for p in logprobs]
        return self._event("response.output_text.delta", **where, delta=piece, logprobs=shown)

    def _close(self, block: Block, where: dict[str, Any], index: int) -> bytes:
        self._items[index] = closed = item(block, where["item_id"], "completed", self._logprobs)
        if block.kind == "call":
            done = self._event("response.function_call_arguments.done", **where, name=block.name, arguments=block.text)
            return done + self._event("response.output_item.done", output_index=index, item=closed)
        if block.kind == "reasoning":
            done = self._event("response.reasoning_text.done", **where, text=block.text)
        else:
            shown = [{k: v for k, v in p.items() if k != "bytes"} for p in self._logprobs]
            done = self._event("response.output_text.done", **where, text=block.text, logprobs=shown)
        done += self._event("response.content_part.done", **where, part=part(block, self._logprobs))
        return done + self._event("response.output_item.done", output_index=index, item=closed)
