"""One response of /v1/responses: its object, and the items that its output is made of."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from server.errors import ApiError
from server.openai import logprobs as logprob_shapes
from server.openai.blocks import Block, Step, reasoning_tokens
from server.openai.chat_request import Chat
from server.openai.schema import ResponsesRequest
from server.state import ServerState

_PREFIX = {"reasoning": "rs", "text": "msg", "call": "fc"}


@dataclass(slots=True)
class Reply:
    """One response: what was asked, and the chat that answers."""

    body: ResponsesRequest
    chat: Chat
    names: Mapping[str, str]
    id: str
    created_s: float

    @property
    def wants_logprobs(self) -> bool:
        return bool(self.chat.body.logprobs)

    def shape(
        self,
        status: str,
        output: list[dict[str, Any]],
        *,
        usage: dict[str, Any] | None = None,
        incomplete: str | None = None,
        error: ApiError | None = None,
    ) -> dict[str, Any]:
        """The response object."""
        body, params = self.body, self.chat.params
        text = {"format": {"type": "text"}, "verbosity": "medium", **{k: v for k, v in (body.text or {}).items() if v}}
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created_s,
            "completed_at": float(int(time.time())) if status == "completed" else None,
            "status": status,
            "background": False,
            "error": {"code": "server_error", "message": error.message} if error else None,
            "incomplete_details": {"reason": incomplete} if incomplete else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": None,
            "metadata": body.metadata or {},
            "model": self.chat.model,
            "output": output,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "prompt_cache_key": body.prompt_cache_key,
            "reasoning": {"effort": (body.reasoning or {}).get("effort"), "summary": None},
            "safety_identifier": body.safety_identifier,
            "service_tier": "default",
            "store": False,
            "temperature": params.temperature,
            "text": text,
            "tool_choice": body.tool_choice or ("auto" if self.chat.tools else "none"),
            "tools": [
                {"type": "function", "name": t["name"]} | {k: t.get(k) for k in ("description", "parameters", "strict")}
                for t in body.tools or ()
            ],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": params.top_p,
            "truncation": "disabled",
            "usage": usage,
            "user": body.user,
        }

    def usage(self, state: ServerState, step: Step) -> dict[str, Any]:
        num_input = len(self.chat.prompt)
        return {
            "input_tokens": num_input,
            "input_tokens_details": {"cached_tokens": step.num_cached_tokens, "cache_write_tokens": 0},
            "output_tokens": step.num_output_tokens,
            "output_tokens_details": {"reasoning_tokens": reasoning_tokens(state, step.blocks)},
            "total_tokens": num_input + step.num_output_tokens,
        }

    def ended(self, state: ServerState, step: Step, items: list[dict[str, Any]]) -> dict[str, Any]:
        """The response object of an answer that is over."""
        if step.finish_reason == "length":
            if items:
                items[-1]["status"] = "incomplete"
            return self.shape("incomplete", items, usage=self.usage(state, step), incomplete="max_output_tokens")
        return self.shape("completed", items, usage=self.usage(state, step))

    def logprobs(self, state: ServerState, positions: list[Any]) -> list[dict[str, Any]]:
        if not self.wants_logprobs:
            return []
        shape = logprob_shapes.chat(state, positions, self.body.top_logprobs or 0)
        return list(shape["content"]) if shape else []


def item_id(block: Block) -> str:
    return f"{_PREFIX[block.kind]}_{uuid.uuid4().hex}"


def item(block: Block, id: str, status: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    empty = status == "in_progress"  # the block may have grown already when it is told that it opens
    if block.kind == "call":
        return {
            "type": "function_call",
            "id": id,
            "call_id": block.call_id,
            "name": block.name,
            "arguments": "" if empty else block.text,
            "status": status,
        }
    if block.kind == "reasoning":
        content = [] if empty else [{"type": "reasoning_text", "text": block.text}]
        return {"type": "reasoning", "id": id, "summary": [], "content": content, "status": status}
    return {
        "type": "message",
        "id": id,
        "role": "assistant",
        "status": status,
        "content": [] if empty else [part(block, logprobs)],
    }


def part(block: Block, logprobs: list[dict[str, Any]], *, empty: bool = False) -> dict[str, Any]:
    text = "" if empty else block.text
    if block.kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}
