"""One conversation of the training text, what counts as a right last answer to it, and what is held out."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field
from typing import Any, Literal

Message = dict[str, Any]
Tool = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Check:
    """What a right final answer is."""

    rule: Literal["one_of", "number", "json", "calls", "contains", "none"]
    """one_of: the text is one of `want`; number: the last number in it; json: it parses to `want`;
    calls: its tool calls are `want`, a list of (name, arguments); contains: every text of `want` is in it."""
    want: Any = None


NOTHING = Check("none")


@dataclass(slots=True)
class Sample:
    """The last message is the assistant's answer that `check` is about."""

    kind: str
    messages: list[Message]
    check: Check = NOTHING
    tools: list[Tool] | None = None
    keys: list[str] = field(default_factory=list)
    """What names this sample's questions; with one of them held out, it is not trained on."""
    text: str | None = None
    """Plain text in place of messages."""

    def prompts(self) -> list[str]:
        return self.keys or [str(m["content"]) for m in self.messages if m["role"] == "user"]


def held_out(key: str) -> bool:
    """About one question in sixteen is never trained on; those are what the model card measures."""
    return zlib.crc32(" ".join(key.lower().split()).encode()) % 16 == 0


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def system(text: str) -> Message:
    return {"role": "system", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def calling(calls: list[tuple[str, dict[str, Any]]], text: str = "") -> Message:
    return {
        "role": "assistant",
        "content": text,
        "tool_calls": [{"type": "function", "function": {"name": n, "arguments": a}} for n, a in calls],
    }


def tool_result(value: Any) -> Message:
    return {"role": "tool", "content": value if isinstance(value, str) else compact(value)}


def compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
