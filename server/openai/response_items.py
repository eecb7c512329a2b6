"""Bodies of /v1/responses -> the chat that they mean. Knows nothing of answers.

A response here is a chat completion with another shape around it: items become messages, and every parameter either
has its meaning, or is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from core.sampling_params import MAX_LOGPROBS
from server.errors import ApiError, invalid, unsupported
from server.openai.messages import required_string
from server.openai.schema import ChatCompletionRequest, ChatMessage, ResponsesRequest, Tool

LOGPROBS = "message.output_text.logprobs"
ENCRYPTED = "reasoning.encrypted_content"
_EXTRAS = (
    *("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"),
    *("seed", "stop", "stop_token_ids", "include_stop_str_in_output", "ignore_eos", "min_tokens"),
    *("skip_special_tokens", "priority", "cache_salt", "request_id", "chat_template_kwargs", "structured_outputs"),
    *("model", "stream", "parallel_tool_calls", "user", "metadata", "safety_identifier"),
    *("prompt_cache_key", "prompt_cache_retention", "prompt_cache_options", "service_tier"),
)
"""What means in a chat what it means in a response."""
_REFUSED: dict[str, str] = {
    "previous_response_id": "responses are not stored here; send the earlier items in input",
    "conversation": "conversations are not stored here; send the earlier items in input",
    "prompt": "prompt templates are not stored here; send instructions and input",
    "context_management": "nothing is compacted here; send a shorter input",
    "max_tool_calls": "it counts calls of built-in tools, of which there are none here",
    "moderation": "the server does not moderate",
    "image": "the models served here write text",
    "access_programs": "there are none here",
    "background_options": "a response is not stored, so none runs in the background",
}
_TOOL_KEYS = ("type", "name", "description", "parameters", "strict")
_ITEM_ROLES = ("user", "assistant", "system", "developer")


def refuse(body: ResponsesRequest) -> None:
    for name, why in _REFUSED.items():
        if getattr(body, name) is not None:
            raise unsupported(name, why)
    if body.background:
        raise unsupported("background", "responses are not stored here, so a client must wait for its own")
    if body.store:
        raise unsupported("store", "responses are not stored here; send false, or leave it out")
    if body.truncation not in (None, "disabled"):
        raise unsupported("truncation", "an input that is too long is an error; send 'disabled' and a shorter input")
    if body.stream_options is not None and body.stream_options.include_usage is not None:
        raise unsupported("stream_options.include_usage", "the last event of a response holds the usage anyway")
    for i, wanted in enumerate(body.include or ()):
        # reasoning comes back as plain text and is taken back as such, which is what the encrypted text is for
        if wanted not in (LOGPROBS, ENCRYPTED):
            raise unsupported(f"include[{i}]", f"{wanted!r} does not exist here; {LOGPROBS} does")
    if body.top_logprobs is not None and not 0 <= body.top_logprobs <= MAX_LOGPROBS:
        raise invalid("top_logprobs", f"top_logprobs={body.top_logprobs} must be from 0 to {MAX_LOGPROBS}")
    if body.max_output_tokens is not None and body.max_output_tokens < 1:
        raise invalid("max_output_tokens", f"max_output_tokens={body.max_output_tokens} must be at least 1")


def to_chat(body: ResponsesRequest) -> tuple[ChatCompletionRequest, dict[str, str]]:
    """The chat, and where each of its parts stood: its parameter's name -> the response's, for errors."""
    refuse(body)
    names = {
        "max_completion_tokens": "max_output_tokens",
        "max_tokens": "max_output_tokens",
        "prompt_token_ids": "input",
        "prompt": "input",
        "messages": "input",
        "response_format.json_schema": "text.format",
        "response_format": "text.format",
        "reasoning_effort": "reasoning.effort",
        "guided_decoding": "text.format",
        "guided_json": "text.format",
    }
    messages = _messages(body, names)
    for i in range(len(body.tools or ())):
        names[f"tools[{i}].function"] = f"tools[{i}]"
    want_logprobs = LOGPROBS in (body.include or ()) or bool(body.top_logprobs)
    chat = ChatCompletionRequest(
        messages=messages,
        max_completion_tokens=body.max_output_tokens,
        tools=[_tool(t, f"tools[{i}]") for i, t in enumerate(body.tools)] if body.tools else None,
        tool_choice=_tool_choice(body.tool_choice),
        logprobs=want_logprobs or None,
        top_logprobs=body.top_logprobs if want_logprobs else None,
        **_text(body.text),
        **_reasoning(body.reasoning),
        **{name: getattr(body, name) for name in _EXTRAS},
    )
    if body.stream_options is not None:
        chat.stream_options = body.stream_options
    return chat, names


# ---- items


def _messages(body: ResponsesRequest, names: dict[str, str]) -> list[ChatMessage]:
    messages: list[ChatMessage] = []
    if body.instructions is not None:
        names["messages[0]"] = "instructions"
        messages.append(ChatMessage(role="system", content=body.instructions))
    if isinstance(body.input, str):
        names[f"messages[{len(messages)}]"] = "input"
        return [*messages, ChatMessage(role="user", content=body.input)]
    if not body.input:
        raise invalid("input", "input is empty; send text or at least one item")
    assistant: ChatMessage | None = None
    """The assistant's turn that reasoning, text and calls add to, until somebody else speaks."""
    for i, item in enumerate(body.input):
        at = f"input[{i}]"
        kind = item.get("type", "message")
        if kind == "reasoning" or kind == "function_call" or (kind == "message" and item.get("role") == "assistant"):
            if assistant is None or (kind == "message" and (assistant.content is not None or assistant.tool_calls)):
                assistant = ChatMessage(role="assistant")
                names[f"messages[{len(messages)}]"] = at
                messages.append(assistant)
            if kind == "reasoning":
                assistant.reasoning_content = (assistant.reasoning_content or "") + _reasoning_text(item, at)
            elif kind == "message":
                assistant.content = _content(item.get("content"), f"{at}.content")
            else:
                where = f"messages[{len(messages) - 1}].tool_calls[{len(assistant.tool_calls or ())}]"
                names[f"{where}.function"] = at
                assistant.tool_calls = [*(assistant.tool_calls or ()), _call(item, at)]
            continue
        assistant = None
        names[f"messages[{len(messages)}]"] = at
        if kind == "message":
            role = item.get("role")
            if role not in _ITEM_ROLES:
                raise invalid(f"{at}.role", f"{at}.role={role!r} is not one of {', '.join(_ITEM_ROLES)}")
            messages.append(ChatMessage(role=role, content=_content(item.get("content"), f"{at}.content")))
        elif kind == "function_call_output":
            output = _content(item.get("output"), f"{at}.output")
            call_id = required_string(item, "call_id", at)
            messages.append(ChatMessage(role="tool", content=output, tool_call_id=call_id))
        elif kind == "item_reference":
            raise unsupported(f"{at}.type", "'item_reference': responses are not stored here; send the item itself")
        else:
            raise ApiError(
                f"{at}.type={kind!r} is not supported; send message, reasoning, function_call, function_call_output",
                param=f"{at}.type",
                code="unsupported_parameter",
            )
    # reasoning alone says nothing that a template could show
    for message in messages:
        if message.role == "assistant" and message.content is None:
            message.content = ""
    return _one_system(messages, names)


def _one_system(messages: list[ChatMessage], names: dict[str, str]) -> list[ChatMessage]:
    """Instructions and a system message right after them are one: many templates take one."""
    if len(messages) < 2 or names.get("messages[0]") != "instructions":
        return messages
    first, second = messages[:2]
    if second.role not in ("system", "developer"):
        return messages
    joined = ChatMessage(role="system", content=f"{first.content}\n\n{second.content}")
    for i in range(1, len(messages)):
        names[f"messages[{i - 1}]"] = names.pop(f"messages[{i}]")
    return [joined, *messages[2:]]


def _content(content: Any, at: str) -> str:
    if isinstance(content, str):
        return content
    if content is None:
        raise ApiError(f"{at} is required", param=at, code="missing_required_parameter")
    if not isinstance(content, list):
        raise ApiError(f"{at} must be text or a list of parts", param=at, code="invalid_type")
    texts = []
    for i, part in enumerate(content):
        where = f"{at}[{i}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("input_text", "output_text", "text"):
            texts.append(required_string(part, "text", where))
        elif kind == "refusal":
            texts.append(required_string(part, "refusal", where))
        elif kind in ("input_image", "input_file", "input_audio", "computer_screenshot"):
            raise ApiError(
                f"{where}.type={kind!r} is not supported: the model served here reads text only",
                param=f"{where}.type",
                code="unsupported_parameter",
            )
        else:
            raise invalid(f"{where}.type", f"{where}.type={kind!r} is not known; send input_text or output_text")
    return "\n".join(texts)


def _reasoning_text(item: Mapping[str, Any], at: str) -> str:
    parts = item.get("content") or item.get("summary") or []
    if not isinstance(parts, list) or not all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in parts):
        raise ApiError(
            f"{at}.content must be a list of reasoning_text parts", param=f"{at}.content", code="invalid_type"
        )
    if not parts and item.get("encrypted_content"):
        raise unsupported(f"{at}.encrypted_content", "it was not written here; send the reasoning as content")
    return "".join(p["text"] for p in parts)


def _call(item: Mapping[str, Any], at: str) -> dict[str, Any]:
    function = {"name": required_string(item, "name", at), "arguments": required_string(item, "arguments", at)}
    return {"id": required_string(item, "call_id", at), "type": "function", "function": function}


# ---- tools


def _tool(tool: Mapping[str, Any], at: str) -> Tool:
    kind = tool.get("type")
    if kind != "function":
        raise ApiError(
            f"{at}.type={kind!r} is not supported: no tool is built in here; send 'function'",
            param=f"{at}.type",
            code="unsupported_parameter",
        )
    for key, value in tool.items():
        if key not in _TOOL_KEYS and value not in (None, False):
            raise unsupported(f"{at}.{key}", f"a function takes {', '.join(_TOOL_KEYS)}")
    required_string(tool, "name", at)
    try:
        return msgspec.convert({"type": "function", "function": {k: tool.get(k) for k in _TOOL_KEYS[1:]}}, Tool)
    except msgspec.ValidationError as error:
        raise ApiError(f"{at} has the wrong type: {error}", param=at, code="invalid_type") from None


def _tool_choice(choice: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
    if not isinstance(choice, dict):
        return choice
    kind = choice.get("type")
    if kind == "function":
        return {"type": "function", "function": {"name": choice.get("name")}}
    if kind == "allowed_tools":
        tools = choice.get("tools")
        listed = [
            {"type": "function", "function": t} if isinstance(t, dict) and t.get("type") == "function" else t
            for t in (tools if isinstance(tools, list) else ())
        ]
        return {"type": "allowed_tools", "allowed_tools": {"mode": choice.get("mode"), "tools": listed}}
    return choice


# ---- what is an object of its own


def _known(value: Mapping[str, Any], name: str, keys: tuple[str, ...]) -> None:
    for key, given in value.items():
        if key not in keys and given is not None:
            raise ApiError(
                f"{name}.{key} is not supported; {name} takes {', '.join(keys)}",
                param=f"{name}.{key}",
                code="unsupported_parameter",
            )


def _text(text: Mapping[str, Any] | None) -> dict[str, Any]:
    if text is None:
        return {}
    _known(text, "text", ("format", "verbosity"))
    if text.get("verbosity") not in (None, "medium"):
        raise unsupported("text.verbosity", "say in the instructions how long answers should be")
    given = text.get("format")
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise ApiError("text.format must be an object with a type", param="text.format", code="invalid_type")
    if given.get("type") == "json_schema":
        return {
            "response_format": {"type": "json_schema", "json_schema": {k: v for k, v in given.items() if k != "type"}}
        }
    return {"response_format": dict(given)}


def _reasoning(reasoning: Mapping[str, Any] | None) -> dict[str, Any]:
    if reasoning is None:
        return {}
    _known(reasoning, "reasoning", ("effort", "summary", "generate_summary"))
    for key in ("summary", "generate_summary"):
        if reasoning.get(key) not in (None, "auto"):
            raise unsupported(f"reasoning.{key}", "reasoning comes whole, as text; leave it out, or send 'auto'")
    effort = reasoning.get("effort")
    if effort is not None and not isinstance(effort, str):
        raise ApiError("reasoning.effort must be a string", param="reasoning.effort", code="invalid_type")
    return {"reasoning_effort": effort}
