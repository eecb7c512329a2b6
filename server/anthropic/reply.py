"""One message of /v1/messages: its object, and the blocks that its content is made of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from server.anthropic.schema import MessagesRequest
from server.openai.blocks import Block, Step
from server.openai.chat_request import Chat


@dataclass(slots=True)
class Reply:
    body: MessagesRequest
    chat: Chat
    names: Mapping[str, str]
    request_id: str

    def message(self, content: list[dict[str, Any]], usage: dict[str, Any], **ended: Any) -> dict[str, Any]:
        return {
            "id": self.chat.id,
            "type": "message",
            "role": "assistant",
            "model": self.chat.model,
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
            **ended,
            "usage": usage,
        }

    def usage(self, step: Step | None) -> dict[str, Any]:
        """Prompt tokens that came from the cache are counted apart, as Anthropic does. They are known at the end."""
        cached = step.num_cached_tokens if step else 0
        return {
            "input_tokens": len(self.chat.prompt) - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": step.num_output_tokens if step else 0,
        }

    def ended(self, step: Step) -> dict[str, Any]:
        if step.finish_reason == "length":
            return {"stop_reason": "max_tokens", "stop_sequence": None}
        if step.finish_reason == "tool_calls":
            return {"stop_reason": "tool_use", "stop_sequence": None}
        if isinstance(step.stop_reason, str):
            return {"stop_reason": "stop_sequence", "stop_sequence": step.stop_reason}
        return {"stop_reason": "end_turn", "stop_sequence": None}


def content_block(block: Block, *, empty: bool = False) -> dict[str, Any]:
    text = "" if empty else block.text
    if block.kind == "reasoning":
        return {"type": "thinking", "thinking": text, "signature": ""}
    if block.kind == "call":
        return {"type": "tool_use", "id": block.call_id, "name": block.name, "input": {} if empty else _input(text)}
    return {"type": "text", "text": text, "citations": None}


def _input(text: str) -> dict[str, Any]:
    """Arguments as the object that this API wants. A call cut off by max_tokens has none that can be read."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
