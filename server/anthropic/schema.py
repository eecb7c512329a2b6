"""Bodies and answers of /v1/messages as msgspec structs. Types only; meaning is in translate.py."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Blocks = str | list[dict[str, Any]]


class Message(msgspec.Struct, kw_only=True):
    role: str
    content: Blocks


class MessagesRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/messages and /v1/messages/count_tokens"""

    model: str
    messages: list[Message]
    max_tokens: int | None = None
    system: Blocks | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None
    output_format: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    cache_control: dict[str, Any] | None = None
    # of Anthropic's, and refused when set
    container: str | dict[str, Any] | None = None
    context_management: dict[str, Any] | None = None
    diagnostics: dict[str, Any] | None = None
    inference_geo: str | None = None
    mcp_servers: list[dict[str, Any]] | None = None
    speed: str | None = None
    user_profile_id: str | None = None
    workspace_id: str | None = None
    # our extras
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    priority: int | None = None
    cache_salt: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class MessagesErrorDetail(msgspec.Struct):
    type: str
    message: str


class MessagesError(msgspec.Struct):
    """Every answer that is not 200"""

    type: Literal["error"]
    error: MessagesErrorDetail
    request_id: str


class MessageUsage(msgspec.Struct):
    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


class MessageAnswer(msgspec.Struct):
    """A message; its content blocks are Anthropic's"""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]
    stop_sequence: str | None
    usage: MessageUsage


class InputTokenCount(msgspec.Struct):
    input_tokens: int
