"""Chat messages as clients send them -> as chat templates want them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from server.errors import ApiError, invalid
from server.openai.schema import ChatMessage, Tool

_ROLES = ("system", "developer", "user", "assistant", "tool")


def required_string(item: Mapping[str, Any], key: str, at: str) -> str:
    value = item.get(key)
    if not isinstance(value, str):
        code = "missing_required_parameter" if value is None else "invalid_type"
        raise ApiError(f"{at}.{key} is required, a string", param=f"{at}.{key}", code=code)
    return value


def template_messages(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    if not messages:
        raise invalid("messages", "messages is empty; send at least one")
    return [_message(m, f"messages[{i}]") for i, m in enumerate(messages)]


def _message(message: ChatMessage, where: str) -> dict[str, Any]:
    if message.role not in _ROLES:
        raise invalid(f"{where}.role", f"{where}.role={message.role!r} is not one of {', '.join(_ROLES)}")
    if message.audio is not None:
        raise ApiError(
            f"{where}.audio is not supported: the models served here read text",
            param=f"{where}.audio",
            code="unsupported_parameter",
        )
    if message.function_call is not None:
        raise ApiError(
            f"{where}.function_call is not supported: use tool_calls",
            param=f"{where}.function_call",
            code="unsupported_parameter",
        )
    out: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": _content(message.content, f"{where}.content"),
    }
    if message.content is None:
        if message.role != "assistant":
            raise ApiError(f"{where}.content is required", param=f"{where}.content", code="missing_required_parameter")
        out["content"] = message.refusal or ""
    for name in ("name", "tool_call_id"):
        if getattr(message, name) is not None:
            out[name] = getattr(message, name)
    reasoning = message.reasoning_content or message.reasoning
    if reasoning is not None:
        out["reasoning_content"] = reasoning
    if message.tool_calls:
        if message.role != "assistant":
            raise invalid(f"{where}.tool_calls", f"{where}.tool_calls belongs to the role assistant")
        out["tool_calls"] = [_call(c, f"{where}.tool_calls[{i}]") for i, c in enumerate(message.tool_calls)]
    return out


def _content(content: str | list[str | dict[str, Any]] | None, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    texts = []
    for i, part in enumerate(content):
        at = f"{where}[{i}]"
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = part.get("type")
        if kind in ("text", "input_text", "output_text", "refusal", "thinking"):
            text = part.get("refusal" if kind == "refusal" else "thinking" if kind == "thinking" else "text")
            if not isinstance(text, str):
                raise ApiError(f"{at}.text must be a string", param=f"{at}.text", code="invalid_type")
            texts.append(text)
        elif kind in ("image_url", "input_image", "input_audio", "audio_url", "video_url", "file", "image_embeds"):
            raise ApiError(
                f"{at}.type={kind!r} is not supported: the model served here reads text only",
                param=f"{at}.type",
                code="unsupported_parameter",
            )
        else:
            raise invalid(f"{at}.type", f"{at}.type={kind!r} is not known; send 'text'")
    return "\n".join(texts)


def _call(call: dict[str, Any], where: str) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ApiError(
            f"{where}.function.name is required", param=f"{where}.function.name", code="missing_required_parameter"
        )
    arguments = function.get("arguments") or "{}"
    if isinstance(arguments, str):
        # templates print arguments with tojson, so they want the object
        try:
            arguments = json.loads(arguments)
        except ValueError:
            raise invalid(f"{where}.function.arguments", f"{where}.function.arguments is not JSON") from None
    return {**call, "type": "function", "function": {**function, "arguments": arguments}}


def template_tools(tools: Sequence[Tool] | None) -> list[dict[str, Any]]:
    found = []
    for i, tool in enumerate(tools or ()):
        if tool.type != "function":
            raise ApiError(
                f"tools[{i}].type={tool.type!r} is not supported; send 'function'",
                param=f"tools[{i}].type",
                code="unsupported_parameter",
            )
        if tool.function is None:
            raise ApiError(
                f"tools[{i}].function is required", param=f"tools[{i}].function", code="missing_required_parameter"
            )
        function = tool.function
        if not function.name or len(function.name) > 256:
            raise invalid(f"tools[{i}].function.name", f"tools[{i}].function.name must have 1 to 256 characters")
        value = {k: getattr(function, k) for k in ("name", "description", "parameters", "strict")}
        found.append({"type": "function", "function": {k: v for k, v in value.items() if v is not None}})
    return found
