"""Bodies of /v1/chat/completions -> what the engine is asked. Knows nothing of answers' shapes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from core.engine.news import Outlet
from core.engine.output_processor import OutputKind
from core.outputs import RequestOutput
from core.sampling_params import GuidedDecodingParams, SamplingParams
from server.errors import ApiError, invalid
from server.openai import params
from server.openai.events import Answer, NamedCall, RequiredCalls, required_schema
from server.openai.generation import generate
from server.openai.messages import template_messages, template_tools
from server.openai.parsers import ParserChoice, Parsers
from server.openai.schema import ChatCompletionRequest
from server.state import LONG_TEXT, ServerState


@dataclass(slots=True)
class Chat:
    """One request, understood."""

    body: ChatCompletionRequest
    model: str
    id: str
    params: SamplingParams
    prompt: list[int]
    opened_by: str
    """The marker with which the prompt itself opened the reasoning"""
    tools: list[dict[str, Any]]
    mode: str
    """none, auto, required or named"""
    function: str
    reasoning: ParserChoice | None
    tool_parser: ParserChoice | None
    echo: str
    created_s: int = field(default_factory=lambda: int(time.time()))

    def answer(self) -> Answer:
        reasoning = self.reasoning.factory(self.tools) if self.reasoning else None
        tools: Any = None
        if self.mode == "named":
            tools = NamedCall(self.function)
        elif self.mode == "required":
            tools = RequiredCalls()
        elif self.tool_parser:
            tools = self.tool_parser.factory(self.tools)
        return Answer(reasoning, tools, opened_by=self.opened_by, single=self.body.parallel_tool_calls is False)

    def finish_reason(self, reason: str | None, answer: Answer) -> str | None:
        return "tool_calls" if reason == "stop" and answer.num_calls else reason

    def generate(
        self, state: ServerState, output_kind: OutputKind, outlet: Outlet | None = None
    ) -> AsyncGenerator[RequestOutput, None]:
        return generate(state, self.body, self.id, self.prompt, self.params, output_kind, outlet)


def tool_mode(body: ChatCompletionRequest, tools: list[dict[str, Any]]) -> tuple[str, str]:
    choice = body.tool_choice
    if choice is None:
        return ("auto" if tools else "none"), ""
    if isinstance(choice, str):
        if choice not in ("none", "auto", "required"):
            raise invalid("tool_choice", f"tool_choice={choice!r} is not one of none, auto, required, or a function")
        if choice != "none" and not tools:
            raise invalid("tool_choice", f"tool_choice={choice!r} needs tools")
        return choice, ""
    if choice.get("type") != "function":
        raise ApiError(
            f"tool_choice.type={choice.get('type')!r} is not supported; send 'function'",
            param="tool_choice.type",
            code="unsupported_parameter",
        )
    name = (choice.get("function") or {}).get("name")
    names = [t["function"]["name"] for t in tools]
    if name not in names:
        raise invalid("tool_choice", f"tool_choice names {name!r}, not among tools ({', '.join(names) or 'none'})")
    return "named", str(name)


def allowed_tools(body: ChatCompletionRequest, tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tools that tool_choice `allowed_tools` leaves, and its mode as the new tool_choice. Others: all."""
    choice = body.tool_choice
    if not isinstance(choice, dict) or choice.get("type") != "allowed_tools":
        return tools
    given = choice.get("allowed_tools")
    listed = given.get("tools") if isinstance(given, dict) else None
    if not isinstance(given, dict) or not isinstance(listed, list) or not listed:
        raise invalid("tool_choice.allowed_tools", "tool_choice.allowed_tools wants a mode and a list of tools")
    if given.get("mode") not in ("auto", "required"):
        raise invalid(
            "tool_choice.allowed_tools.mode",
            f"tool_choice.allowed_tools.mode={given.get('mode')!r} is not one of auto, required",
        )
    names = [t["function"]["name"] for t in tools]
    wanted = []
    for i, entry in enumerate(listed):
        function = entry.get("function") if isinstance(entry, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if name not in names:
            raise invalid(
                f"tool_choice.allowed_tools.tools[{i}]",
                f"tool_choice.allowed_tools.tools[{i}] names {name!r}, not among tools ({', '.join(names) or 'none'})",
            )
        wanted.append(name)
    body.tool_choice = given["mode"]
    return [t for t in tools if t["function"]["name"] in wanted]


def strict_constraint(
    parsers: Parsers, tools: list[dict[str, Any]], opened_by: str, *, continuing: bool
) -> GuidedDecodingParams:
    """Free text until a call opens; then arguments that follow the schema of a strict tool, or any object of another's.

    opened_by: the marker that ends the prompt if it opens the reasoning; continuing: the prompt ends within a message.
    Raises ApiError for a format of calls that cannot be held to a schema.
    """
    at = next(i for i, t in enumerate(tools) if t["function"].get("strict"))
    parser, thinks = parsers.tools, parsers.reasoning
    assert parser is not None  # without one 'auto' is refused
    strict_format: Any = getattr(parser.factory, "strict_format", None)
    around: Any = None
    problem = ""
    if strict_format is None:
        problem = f"tool_call_parser {parser.name!r}, whose format cannot be held to a schema"
    elif continuing and getattr(parser.factory, "strict_from_start", False):
        problem = f"continue_final_message in the format {parser.name!r}, which is held from a message's start only"
    elif thinks and thinks.name in parsers.show_special and thinks.name != parser.name:
        # free text holds no special tokens, so those of the reasoning must be said; a format of the same name says them itself
        around = getattr(thinks.factory, "strict_around", None)
        if around is None:
            problem = f"reasoning_parser {thinks.name!r}, whose special tokens free text cannot hold"
    if problem:
        raise ApiError(
            f"tools[{at}].function.strict is not supported with tool_choice 'auto' and {problem}; send tool_choice "
            "'required' or a function, or leave strict out",
            param=f"tools[{at}].function.strict",
            code="unsupported_parameter",
        )
    held = [
        t if t["function"].get("strict") else {"function": {**t["function"], "parameters": {"type": "object"}}}
        for t in tools
    ]
    content = strict_format(held)
    return GuidedDecodingParams(structural_tag={"format": around(content, opened_by) if around else content})


async def understand(
    state: ServerState, parsers: Parsers, body: ChatCompletionRequest, id: str, *, counting: bool = False
) -> Chat:
    """Checks, renders and tokenizes. Raises ApiError or RequestError. `counting`: a prompt of any length is tokenized."""
    engine, options = state.engine, state.options
    model = state.check_model(body.model)
    params.refuse_chat(body)
    if engine.chat_template is None:
        raise ApiError(
            "the model has no chat template; start with --chat-template, or use /v1/completions",
            param="messages",
            code="no_chat_template",
        )
    messages = template_messages(body.messages)
    tools = allowed_tools(body, template_tools(body.tools))
    mode, function = tool_mode(body, tools)
    constraint = params.guided(body)
    if mode in ("required", "named"):
        if constraint is not None:
            raise invalid("tool_choice", f"tool_choice={mode} and another constraint on the output exclude each other")
        by_name = {t["function"]["name"]: t for t in tools}
        schema = (
            by_name[function]["function"].get("parameters") or {"type": "object"}
            if mode == "named"
            else required_schema(tools, parallel=body.parallel_tool_calls is not False)
        )
        constraint = GuidedDecodingParams(json=schema)
    if mode == "auto" and not (options.enable_auto_tool_choice and parsers.tools):
        why = "no --tool-call-parser fits this model" if options.enable_auto_tool_choice else "it is off here"
        raise invalid("tool_choice", f"tool_choice 'auto' cannot be served: {why}; send 'required' or 'none'")

    continuing = bool(body.continue_final_message)
    generation_prompt = not continuing if body.add_generation_prompt is None else body.add_generation_prompt
    variables = dict(body.chat_template_kwargs or {})
    if body.documents is not None:
        variables["documents"] = body.documents
    if body.reasoning_effort is not None:
        variables.setdefault("reasoning_effort", body.reasoning_effort)
    for name in ("messages", "tools", "add_generation_prompt", "continue_final_message"):
        if name in variables:
            raise invalid("chat_template_kwargs", f"chat_template_kwargs.{name} belongs at the top level of the body")

    def render() -> str:
        return engine.render_chat(
            messages,
            tools if mode != "none" and tools else None,
            add_generation_prompt=generation_prompt,
            continue_final_message=continuing,
            **variables,
        )

    long = sum(len(m["content"]) for m in messages) > LONG_TEXT
    text = await asyncio.to_thread(render) if long else render()
    any_length = counting or body.truncate_prompt_tokens is not None
    tokenize = state.encode_all if any_length else state.encode_prompts
    (prompt,) = await tokenize([text], add_special_tokens=bool(body.add_special_tokens))

    # a constraint holds from the first token, so there is no reasoning to take out; a strict tool's, when a call opens
    reasoning = parsers.reasoning if constraint is None else None
    tool_parser = parsers.tools if mode == "auto" else None
    tail = text.rstrip()
    opened_by = next((m for m in reasoning.markers[:1] if tail.endswith(m)), "") if reasoning else ""
    if mode == "auto" and constraint is None and any(t["function"].get("strict") for t in tools):
        constraint = strict_constraint(parsers, tools, opened_by, continuing=continuing)
    if any(p and p.name in parsers.show_special for p in (reasoning, tool_parser)):
        body.skip_special_tokens = False
    echo = ""
    if body.echo and messages[-1]["role"] == options.response_role:
        echo = messages[-1]["content"]
    max_tokens = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    if body.max_completion_tokens is not None and body.max_completion_tokens < 1:
        raise invalid("max_completion_tokens", f"max_completion_tokens={max_tokens} must be at least 1")
    sampling = params.sampling_params(
        body,
        defaults=state.defaults,
        vocab_size=engine.ready.vocab_size,
        max_n=options.max_n,
        max_tokens=max_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        constraint=constraint,
    )
    return Chat(
        body=body,
        model=model,
        id=id,
        params=sampling,
        prompt=engine.inputs.shorten(prompt, sampling),
        opened_by=opened_by,
        tools=tools,
        mode=mode,
        function=function,
        reasoning=reasoning,
        tool_parser=tool_parser,
        echo=echo,
    )
