"""One chat answer as a row of blocks: reasoning, text, calls. The APIs whose answers are items or blocks are made of it.

Knows neither of those APIs: it says when a block opens, grows and closes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from core.outputs import RequestOutput
from server.openai.chat_request import Chat
from server.openai.events import Delta
from server.openai.generation import check_end, final_output
from server.state import ServerState

Kind = Literal["reasoning", "text", "call"]


@dataclass(slots=True)
class Block:
    kind: Kind
    text: str = ""
    """What was thought or said; for a call the JSON of its arguments."""
    name: str = ""
    call_id: str = ""


@dataclass(slots=True)
class Change:
    what: Literal["open", "more", "close"]
    index: int
    block: Block
    piece: str = ""
    """Of "more": the new text."""


class Blocks:
    """Deltas -> changes. At most one block is open; white space alone opens none."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self._is_open = False
        self._held = ""
        self._held_kind: Kind = "text"
        self._calls: dict[int, Block] = {}

    def add(self, delta: Delta) -> list[Change]:
        changes: list[Change] = []
        for kind, piece in (("reasoning", delta.reasoning), ("text", delta.content)):
            if piece:
                self._say(changes, kind, piece)  # type: ignore[arg-type]
        for index, call in sorted(delta.calls.items()):
            if index not in self._calls:
                self._held = ""
                self._calls[index] = Block("call", name=call.name or "", call_id=call.id or "")
                self._open(changes, self._calls[index])
            if call.arguments:
                self._more(changes, call.arguments)
        return changes

    def finish(self) -> list[Change]:
        changes: list[Change] = []
        if self._held and not self._calls and not any(b.kind == "text" for b in self.blocks):
            # the answer is white space, and that is what it is
            self._open(changes, Block(self._held_kind))
            self._more(changes, self._held)
        self._close(changes)
        return changes

    def _say(self, changes: list[Change], kind: Kind, piece: str) -> None:
        if self._is_open and self.blocks[-1].kind == kind:
            self._more(changes, piece)
            return
        if self._held_kind != kind:
            self._held, self._held_kind = "", kind
        self._held += piece
        if self._held.strip():
            held, self._held = self._held, ""
            self._open(changes, Block(kind))
            self._more(changes, held)

    def _open(self, changes: list[Change], block: Block) -> None:
        self._close(changes)
        self.blocks.append(block)
        self._is_open = True
        changes.append(Change("open", len(self.blocks) - 1, block))

    def _more(self, changes: list[Change], piece: str) -> None:
        block = self.blocks[-1]
        block.text += piece
        changes.append(Change("more", len(self.blocks) - 1, block, piece))

    def _close(self, changes: list[Change]) -> None:
        if not self._is_open:
            return
        if self.blocks[-1].kind == "call" and not self.blocks[-1].text.strip():
            self._more(changes, "{}")
        self._is_open = False
        changes.append(Change("close", len(self.blocks) - 1, self.blocks[-1]))


@dataclass(slots=True)
class Step:
    """What is new in an answer, and all of it so far."""

    changes: list[Change]
    logprobs: list[Any]
    num_output_tokens: int
    """So far."""
    num_cached_tokens: int
    finish_reason: str | None = None
    """None while there is more to come; else stop, length, tool_calls."""
    stop_reason: int | str | None = None
    blocks: list[Block] = field(default_factory=list)


class Steps:
    """An answer as it grows (n is 1): its outputs -> steps. The last has a finish_reason and all blocks."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self._answer, self._blocks = chat.answer(), Blocks()
        self._num_output = 0

    def take(self, output: RequestOutput) -> Step:
        """Raises what the answer ended with, if that is none."""
        (new,) = output.outputs
        if new.finish_reason is not None:
            check_end(new, self._chat.params)
        self._num_output += len(new.token_ids)
        changes = self._blocks.add(self._answer.feed(new.text, new.token_ids))
        reason = None
        if new.finish_reason is not None:
            changes += self._blocks.add(self._answer.finish())
            changes += self._blocks.finish()
            reason = self._chat.finish_reason(new.finish_reason, self._answer)
        return Step(
            changes,
            list(new.logprobs or ()),
            self._num_output,
            output.num_cached_tokens,
            reason,
            new.stop_reason,
            self._blocks.blocks,
        )


async def whole(state: ServerState, chat: Chat) -> Step:
    """All of an answer (n is 1)."""
    return Steps(chat).take(await final_output(state, chat.generate(state, "final")))


def reasoning_tokens(state: ServerState, blocks: list[Block]) -> int:
    """Tokens of the reasoning, without the markers around it."""
    tokenizer = state.engine.tokenizer
    texts = [b.text for b in blocks if b.kind == "reasoning"]
    if tokenizer is None or not texts:
        return 0
    return sum(len(tokenizer.encode(t, add_special_tokens=False)) for t in texts)
