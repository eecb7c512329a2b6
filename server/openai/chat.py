"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

import msgspec
from litestar import Response, post

from core.engine.output_processor import OutputKind
from core.errors import RequestAbortedError
from core.outputs import CompletionOutput, RequestOutput
from core.sampling_params import GuidedDecodingParams, SamplingParams
from server.errors import ApiError, encode, invalid
from server.openai import logprobs as logprob_shapes
from server.openai import params
from server.openai.answers import ChatCompletion
from server.openai.events import Answer, NamedCall, ParserChoice, RequiredCalls, choose_parser, required_schema
from server.openai.messages import template_messages, template_tools
from server.openai.schema import ChatCompletionRequest
from server.openai.usage import usage
from server.openapi import operation
from server.state import LONG_TEXT, HttpRequest, ServerState, read_body, request_id, unless_gone
from server.streaming import DONE, DirectOutlet, error_event, start

_decoder = msgspec.json.Decoder(ChatCompletionRequest)
_NOTHING_ELSE = b'},"logprobs":null,"finish_reason":null}'
"""What follows the text of a chunk that holds new text alone."""


class Parsers:
    """The model's parsers, chosen once when the app is made."""

    def __init__(self, state: ServerState) -> None:
        engine = state.engine
        template = getattr(engine.chat_template, "source", engine.chat_template)
        plugins = engine.config.plugins
        self.tools = choose_parser(engine.registry, "tool_parser", plugins.tool_call_parser, template)
        self.reasoning = choose_parser(engine.registry, "reasoning_parser", plugins.reasoning_parser, template)
        self._tokenizer = engine.tokenizer
        self.show_special = {p.name for p in (self.tools, self.reasoning) if p and self._has_special_marker(p)}

    def _has_special_marker(self, parser: ParserChoice) -> bool:
        """Its markers would be lost if special tokens were left out of the text."""
        if self._tokenizer is None:
            return False
        for marker in parser.markers:
            ids = self._tokenizer.encode(marker, add_special_tokens=False)
            if len(ids) == 1 and ids[0] in self._tokenizer.special_ids:
                return True
        return False


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


def strict_constraint(parsers: Parsers, tools: list[dict[str, Any]]) -> GuidedDecodingParams:
    """Free text until a call opens; then arguments that follow the schema of a strict tool, or any object of another's.

    Raises ApiError for a format of calls that cannot be held to a schema.
    """
    at = next(i for i, t in enumerate(tools) if t["function"].get("strict"))
    parser, thinks = parsers.tools, parsers.reasoning
    strict_format = getattr(parser.factory, "strict_format", None) if parser else None
    if strict_format is None or (thinks and thinks.name in parsers.show_special):
        who = f"tool_call_parser {parser.name!r}" if parser and strict_format is None else "this model's reasoning"
        raise ApiError(
            f"tools[{at}].function.strict is not supported with tool_choice 'auto' and {who}, whose format cannot be held "
            "to a schema; send tool_choice 'required' or a function, or leave strict out",
            param=f"tools[{at}].function.strict",
            code="unsupported_parameter",
        )
    held = [
        t if t["function"].get("strict") else {"function": {**t["function"], "parameters": {"type": "object"}}}
        for t in tools
    ]
    return GuidedDecodingParams(structural_tag={"format": strict_format(held)})


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

    free_until_call = mode == "auto" and constraint is None and any(t["function"].get("strict") for t in tools)
    if free_until_call:
        constraint = strict_constraint(parsers, tools)

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
    tokenize = state.encode_all if counting else state.encode_prompts
    (prompt,) = await tokenize([text], add_special_tokens=bool(body.add_special_tokens))

    # any other constraint holds from the first token, so there is no reasoning to take out
    reasoning = parsers.reasoning if constraint is None or free_until_call else None
    tool_parser = parsers.tools if mode == "auto" else None
    tail = text.rstrip()
    opened_by = next((m for m in reasoning.markers[:1] if tail.endswith(m)), "") if reasoning else ""
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
        prompt=prompt,
        opened_by=opened_by,
        tools=tools,
        mode=mode,
        function=function,
        reasoning=reasoning,
        tool_parser=tool_parser,
        echo=echo,
    )


def check_end(output: CompletionOutput, params_: SamplingParams) -> None:
    """An answer that ended badly is no answer."""
    if output.finish_reason == "error":
        bad_request = params_.guided_decoding is not None
        raise ApiError(
            output.error or "the engine could not finish this request",
            status=400 if bad_request else 500,
            code="generation_failed",
        )
    if output.finish_reason == "abort":
        raise RequestAbortedError("the request was aborted before it was done; the server may be stopping")


def generate(
    state: ServerState, chat: Chat, output_kind: OutputKind, outlet: DirectOutlet | None = None
) -> AsyncGenerator[RequestOutput, None]:
    source: Any = state.engine.generate(
        chat.prompt,
        chat.params,
        state.engine_id(chat.id),
        priority=chat.body.priority or 0,
        cache_salt=chat.body.cache_salt or "",
        output_kind=output_kind,
        outlet=outlet,
    )
    return source  # type: ignore[no-any-return]


async def final_output(state: ServerState, chat: Chat) -> RequestOutput:
    """Every answer, whole. Raises what the engine refuses the request with."""
    source = generate(state, chat, "final")
    final: RequestOutput | None = None
    try:
        with state.working():
            async for output in source:
                final = output
    finally:
        await source.aclose()
    if final is None:
        raise RequestAbortedError("the engine gave no answer")
    return final


async def complete(state: ServerState, chat: Chat) -> dict[str, Any]:
    """The whole answer."""
    final = await final_output(state, chat)
    choices = []
    for answer in final.outputs:
        check_end(answer, chat.params)
        choices.append(_choice(state, chat, answer))
    result: dict[str, Any] = {
        "id": chat.id,
        "object": "chat.completion",
        "created": chat.created_s,
        "model": chat.model,
        "choices": choices,
        "usage": usage(len(chat.prompt), sum(len(o.token_ids) for o in final.outputs), final.num_cached_tokens),
    }
    if chat.body.prompt_logprobs is not None:
        result["prompt_logprobs"] = logprob_shapes.prompt(final.prompt_logprobs)
    if chat.body.return_token_ids:
        result["prompt_token_ids"] = chat.prompt
    return result


def _choice(state: ServerState, chat: Chat, output: CompletionOutput) -> dict[str, Any]:
    answer = chat.answer()
    delta, rest = answer.feed(output.text, output.token_ids), answer.finish()
    content = chat.echo + delta.content + rest.content
    reasoning = delta.reasoning + rest.reasoning
    calls = dict(delta.calls)
    for index, call in rest.calls.items():
        if index in calls:
            calls[index].arguments += call.arguments
        else:
            calls[index] = call
    if calls and not content.strip():
        content = ""
    message: dict[str, Any] = {
        "role": state.options.response_role,
        "content": content if content or not calls else None,
        "refusal": None,
    }
    if reasoning and chat.body.include_reasoning is not False:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments or "{}"}}
            for c in calls.values()
        ]
    choice: dict[str, Any] = {
        "index": output.index,
        "message": message,
        "logprobs": logprob_shapes.chat(
            state, output.logprobs, chat.body.top_logprobs or 0, as_ids=bool(chat.body.return_tokens_as_token_ids)
        )
        if chat.body.logprobs
        else None,
        "finish_reason": chat.finish_reason(output.finish_reason, answer),
        "stop_reason": output.stop_reason,
    }
    if chat.body.return_token_ids:
        choice["token_ids"] = output.token_ids
    return choice


class Chunks:
    """The events of one streamed chat, made of its outputs. Each piece holds everything that is ready."""

    def __init__(self, state: ServerState, chat: Chat) -> None:
        self._state, self._chat = state, chat
        body = chat.body
        options = body.stream_options
        self._include_usage = bool(options and options.include_usage)
        self._continuous = bool(options and options.continuous_usage_stats)
        head = {"id": chat.id, "object": "chat.completion.chunk", "created": chat.created_s, "model": chat.model}
        self._head = b"data: " + encode(head)[:-1] + b',"choices":['
        self._num_output = self._num_cached = 0
        self._answers = [chat.answer() for _ in range(chat.params.n)]
        self._open = set(range(chat.params.n))
        # a template has to see whether there is more to say than text, which is the common case
        self._simple = self._answers[0].plain and not (body.logprobs or body.return_token_ids)
        self._before_delta = [self._head + b'{"index":%d,"delta":' % i for i in range(chat.params.n)]
        self.started = False
        """The first output was rendered."""

    def render(self, output: RequestOutput) -> bytes:
        """Events of what is new; b"" if nothing has to be said."""
        chat = self._chat
        pieces: list[bytes] = []
        self._num_cached = output.num_cached_tokens or self._num_cached
        if not self.started:
            self.started = True
            first = {"role": self._state.options.response_role, "content": chat.echo}
            extra = b',"prompt_token_ids":' + encode(chat.prompt) if chat.body.return_token_ids else b""
            pieces += [self._chunk(i, encode(first), extra=extra) for i in range(chat.params.n)]
        for new in output.outputs:
            if new.index not in self._open:
                continue
            self._num_output += len(new.token_ids)
            ended = new.finish_reason
            if ended is not None:
                check_end(new, chat.params)
                self._open.discard(new.index)
            if not self._simple:
                pieces += self._rich(new)
            elif new.text:
                before = self._before_delta[new.index]
                pieces += (before, b'{"content":', encode(new.text), _NOTHING_ELSE, self._tail())
            if ended is not None:
                reason = chat.finish_reason(ended, self._answers[new.index])
                stop = b',"stop_reason":' + encode(new.stop_reason)
                pieces.append(self._chunk(new.index, b"{}", encode(reason), extra=stop))
        return b"".join(pieces)

    def _rich(self, new: CompletionOutput) -> list[bytes]:
        """Chunks of a delta that goes through parsers, or carries log probabilities or token ids."""
        body, answer = self._chat.body, self._answers[new.index]
        deltas = [answer.feed(new.text, new.token_ids)]
        if new.finish_reason is not None:
            deltas.append(answer.finish())
        logprobs = b"null"
        if body.logprobs and new.logprobs:
            logprobs = encode(
                logprob_shapes.chat(
                    self._state,
                    new.logprobs,
                    body.top_logprobs or 0,
                    as_ids=bool(body.return_tokens_as_token_ids),
                )
            )
        extra = b',"token_ids":' + encode(new.token_ids) if body.return_token_ids else b""
        chunks = []
        for delta in deltas:
            if body.include_reasoning is False:
                delta.reasoning = ""
            if delta or logprobs != b"null" or (extra and new.token_ids):
                chunks.append(self._chunk(new.index, encode(delta.encoded()), logprobs=logprobs, extra=extra))
                logprobs, extra = b"null", b""
        return chunks

    def _chunk(
        self, index: int, delta: bytes, finish: bytes = b"null", logprobs: bytes = b"null", extra: bytes = b""
    ) -> bytes:
        return b"".join(
            (
                self._before_delta[index],
                delta,
                b',"logprobs":',
                logprobs,
                b',"finish_reason":',
                finish,
                extra,
                b"}",
                self._tail(),
            )
        )

    def end(self) -> bytes:
        """What comes behind all of them."""
        return (self._head + b'],"usage":' + self._counts() + b"}\n\n" if self._include_usage else b"") + DONE

    def _counts(self) -> bytes:
        return encode(usage(len(self._chat.prompt), self._num_output, self._num_cached))

    def _tail(self) -> bytes:
        if self._continuous:
            return b'],"usage":' + self._counts() + b"}\n\n"
        return b'],"usage":null}\n\n' if self._include_usage else b"]}\n\n"


async def events(
    state: ServerState, chat: Chat, chunks: Chunks, outlet: DirectOutlet | None
) -> AsyncGenerator[bytes, None]:
    """Server-sent events of one streamed chat, but for those that take the short way."""
    source = generate(state, chat, "delta", outlet)
    last = b""
    try:
        with state.working():
            async for output in source:
                piece = chunks.render(output)
                if output.finished:
                    last = piece  # what follows is there already: one write for all of it
                elif piece:
                    yield piece
            yield last + chunks.end()
    except Exception as error:
        if not chunks.started:
            raise
        yield error_event(error)
    finally:
        await source.aclose()


@post(
    "/v1/chat/completions",
    status_code=200,
    operation_class=operation(ChatCompletionRequest, ChatCompletion, streams=True),
)
async def chat_completions(request: HttpRequest) -> Response[Any]:
    """Answer a chat, whole or as server-sent events."""
    state: ServerState = request.app.state.server
    state.check_open()
    body, raw = await read_body(request, _decoder, state.options.body_timeout_s)
    params.check_keys(raw, ChatCompletionRequest)
    id = f"chatcmpl-{body.request_id or request_id(request)}"
    chat = await understand(state, request.app.state.parsers, body, id)
    if body.stream:
        chunks = Chunks(state, chat)
        outlet = DirectOutlet(chunks.render)
        return await start(request, events(state, chat, chunks, outlet), outlet=outlet)
    answer = await unless_gone(request, complete(state, chat))
    return Response(encode(answer), media_type="application/json")
