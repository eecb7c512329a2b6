"""Bodies of /v1/messages -> the chat that they mean. Every parameter has its meaning, or is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from server.anthropic.schema import Blocks, MessagesRequest
from server.errors import ApiError, encode, invalid, unsupported
from server.openai.messages import required_string
from server.openai.schema import ChatCompletionRequest, ChatMessage, Tool

_REFUSED: dict[str, str] = {
    "container": "no code runs here",
    "context_management": "nothing is edited out here; send shorter messages",
    "diagnostics": "there are none here",
    "inference_geo": "the server runs where it runs",
    "mcp_servers": "the server calls no other; offer their tools in tools",
    "user_profile_id": "there are no profiles here",
    "workspace_id": "there are no workspaces here",
}
_EXTRAS = (
    *("model", "stream", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "ignore_eos"),
    *("min_tokens", "priority", "cache_salt"),
)
_NAMES = {
    "max_completion_tokens": "max_tokens",
    "prompt_token_ids": "messages",
    "prompt": "messages",
    "stop": "stop_sequences",
    "response_format.json_schema": "output_config.format",
    "response_format": "output_config.format",
    "guided_decoding": "output_config.format",
    "reasoning_effort": "output_config.effort",
}
# hints about billing and latency, which change no answer
_TOOL_HINTS = ("cache_control", "eager_input_streaming")


def to_chat(body: MessagesRequest) -> tuple[ChatCompletionRequest, dict[str, str]]:
    """The chat, and where each of its parts stood: its parameter's name -> this API's, for errors."""
    for name, why in _REFUSED.items():
        if getattr(body, name) is not None:
            raise unsupported(name, why)
    if body.speed not in (None, "standard"):
        raise unsupported("speed", "there is one, 'standard'")
    if body.service_tier not in (None, "auto", "standard_only"):
        raise unsupported("service_tier", "there is one tier; send 'auto', or leave it out")
    names = dict(_NAMES)
    messages = _messages(body, names)
    continuing = messages[-1].role == "assistant"
    variables = dict(body.chat_template_kwargs or {})
    thinking = _thinking(body.thinking)
    if thinking is not None:
        variables.setdefault("enable_thinking", thinking)
    for i in range(len(body.tools or ())):
        names[f"tools[{i}].function"] = f"tools[{i}]"
    choice, parallel = _tool_choice(body.tool_choice)
    chat = ChatCompletionRequest(
        messages=messages,
        max_completion_tokens=body.max_tokens,
        stop=body.stop_sequences,
        tools=[_tool(t, f"tools[{i}]") for i, t in enumerate(body.tools)] if body.tools else None,
        tool_choice=choice,
        parallel_tool_calls=parallel,
        continue_final_message=True if continuing else None,
        chat_template_kwargs=variables or None,
        **_output(body),
        **{name: getattr(body, name) for name in _EXTRAS},
    )
    return chat, names


# ---- messages


def _messages(body: MessagesRequest, names: dict[str, str]) -> list[ChatMessage]:
    if not body.messages:
        raise invalid("messages", "messages is empty; send at least one")
    out: list[ChatMessage] = []
    origin: list[str] = []

    def add(message: ChatMessage, at: str) -> None:
        last = out[-1] if out else None
        plain = last is not None and last.role == message.role and not (last.tool_calls or message.tool_calls)
        if last is not None and plain and message.role in ("user", "assistant"):
            # turns of one side that follow each other are one turn
            last.content = f"{last.content}\n{message.content}"
            return
        out.append(message)
        origin.append(at)

    if body.system is not None:
        add(ChatMessage(role="system", content=_text(body.system, "system")), "system")
    for i, message in enumerate(body.messages):
        at = f"messages[{i}]"
        if message.role == "system":
            add(ChatMessage(role="system", content=_text(message.content, f"{at}.content")), at)
        elif message.role == "user":
            _user(message.content, at, add)
        elif message.role == "assistant":
            add(_assistant(message.content, at), at)
        else:
            raise invalid(f"{at}.role", f"{at}.role={message.role!r} is not one of user, assistant, system")
    names.update({f"messages[{k}]": at for k, at in enumerate(origin)})
    return out


def _text(content: Blocks, at: str) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(_text_block(block, f"{at}[{i}]") for i, block in enumerate(content))


def _text_block(block: Mapping[str, Any], at: str) -> str:
    kind = block.get("type")
    if kind != "text":
        raise _no_block(kind, at)
    if block.get("citations"):
        raise unsupported(f"{at}.citations", "the model served here cites nothing")
    return required_string(block, "text", at)


def _no_block(kind: Any, at: str) -> ApiError:
    if kind in ("image", "document", "search_result", "container_upload", "redacted_thinking") or str(kind).endswith(
        ("_tool_result", "server_tool_use")
    ):
        why = "the model served here reads text, and no tool is built in"
        return ApiError(f"{at}.type={kind!r} is not supported: {why}", param=f"{at}.type", code="unsupported_parameter")
    return invalid(f"{at}.type", f"{at}.type={kind!r} cannot stand here; send 'text'")


def _user(content: Blocks, at: str, add: Any) -> None:
    if isinstance(content, str):
        add(ChatMessage(role="user", content=content), at)
        return
    if not content:
        raise invalid(f"{at}.content", f"{at}.content is empty; send at least one block")
    texts: list[str] = []
    for i, block in enumerate(content):
        where = f"{at}.content[{i}]"
        if block.get("type") != "tool_result":
            texts.append(_text_block(block, where))
            continue
        if texts:
            add(ChatMessage(role="user", content="\n".join(texts)), at)
            texts = []
        result = _text(block.get("content") or "", f"{where}.content")
        if block.get("is_error"):
            result = f"Error: {result}"
        add(ChatMessage(role="tool", content=result, tool_call_id=required_string(block, "tool_use_id", where)), at)
    if texts:
        add(ChatMessage(role="user", content="\n".join(texts)), at)


def _assistant(content: Blocks, at: str) -> ChatMessage:
    message = ChatMessage(role="assistant", content="")
    if isinstance(content, str):
        message.content = content
        return message
    texts: list[str] = []
    for i, block in enumerate(content):
        where = f"{at}.content[{i}]"
        kind = block.get("type")
        if kind == "thinking":
            message.reasoning_content = (message.reasoning_content or "") + required_string(block, "thinking", where)
        elif kind == "tool_use":
            given = block.get("input")
            if not isinstance(given, dict):
                raise ApiError(f"{where}.input must be an object", param=f"{where}.input", code="invalid_type")
            function = {"name": required_string(block, "name", where), "arguments": encode(given).decode()}
            call = {"id": required_string(block, "id", where), "type": "function", "function": function}
            message.tool_calls = [*(message.tool_calls or ()), call]
        else:
            texts.append(_text_block(block, where))
    message.content = "\n".join(texts)
    return message


# ---- tools, thinking, output


def _tool(tool: Mapping[str, Any], at: str) -> Tool:
    if tool.get("type") not in (None, "custom"):
        raise ApiError(
            f"{at}.type={tool['type']!r} is not supported: no tool is built in here; describe it with an input_schema",
            param=f"{at}.type",
            code="unsupported_parameter",
        )
    for key, value in tool.items():
        known = key in ("type", "name", "description", "input_schema", "strict", *_TOOL_HINTS)
        if not known and value not in (None, False, [], ["direct"]):
            raise unsupported(f"{at}.{key}", "a tool takes name, description, input_schema, strict")
    function = {
        "name": required_string(tool, "name", at),
        "description": tool.get("description"),
        "parameters": tool.get("input_schema"),
        "strict": tool.get("strict"),
    }
    if not isinstance(function["parameters"], dict):
        raise ApiError(
            f"{at}.input_schema is required, a JSON schema",
            param=f"{at}.input_schema",
            code="missing_required_parameter",
        )
    try:
        return msgspec.convert({"type": "function", "function": function}, Tool)
    except msgspec.ValidationError as error:
        raise ApiError(f"{at} has the wrong type: {error}", param=at, code="invalid_type") from None


def _tool_choice(choice: Mapping[str, Any] | None) -> tuple[str | dict[str, Any] | None, bool | None]:
    """-> tool_choice and parallel_tool_calls of a chat."""
    if choice is None:
        return None, None
    parallel = False if choice.get("disable_parallel_tool_use") else None
    match choice.get("type"):
        case "auto":
            return "auto", parallel
        case "any":
            return "required", parallel
        case "none":
            return "none", parallel
        case "tool":
            name = required_string(choice, "name", "tool_choice")
            return {"type": "function", "function": {"name": name}}, parallel
        case other:
            raise invalid("tool_choice.type", f"tool_choice.type={other!r} is not one of auto, any, tool, none")


def _thinking(thinking: Mapping[str, Any] | None) -> bool | None:
    if thinking is None:
        return None
    kind = thinking.get("type")
    if kind not in ("enabled", "disabled", "adaptive"):
        raise invalid("thinking.type", f"thinking.type={kind!r} is not one of enabled, disabled, adaptive")
    if thinking.get("display") not in (None, "summarized"):
        raise unsupported("thinking.display", "thinking is shown whole; leave it out")
    return kind != "disabled"


def _output(body: MessagesRequest) -> dict[str, Any]:
    config = dict(body.output_config or {})
    if body.output_format is not None:
        if config.get("format") is not None:
            raise invalid("output_format", "output_format and output_config.format exclude each other")
        config["format"] = body.output_format
    for key, value in config.items():
        if key not in ("effort", "format") and value is not None:
            raise unsupported(f"output_config.{key}", "it takes effort and format")
    effort, form = config.get("effort"), config.get("format")
    options: dict[str, Any] = {}
    if effort is not None:
        if not isinstance(effort, str):
            raise ApiError("output_config.effort must be a string", param="output_config.effort", code="invalid_type")
        options["reasoning_effort"] = effort
    if form is not None:
        if not isinstance(form, dict) or form.get("type") != "json_schema":
            raise invalid("output_config.format", "output_config.format takes the type 'json_schema' and a schema")
        schema = {k: v for k, v in form.items() if k != "type"}
        options["response_format"] = {"type": "json_schema", "json_schema": schema}
    return options
