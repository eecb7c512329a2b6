"""POST /tokenize and /detokenize, with vLLM's bodies."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Response, post

from server.errors import ApiError, encode, invalid, unsupported
from server.openai.answers import DetokenizedText, Tokens
from server.openai.messages import template_messages, template_tools
from server.openai.schema import DetokenizeRequest, TokenizeRequest
from server.openapi import operation
from server.state import HttpRequest, ServerState, read_body

_tokenize = msgspec.json.Decoder(TokenizeRequest)
_detokenize = msgspec.json.Decoder(DetokenizeRequest)


@post(["/tokenize", "/v1/tokenize"], status_code=200, operation_class=operation(TokenizeRequest, Tokens))
async def tokenize(request: HttpRequest) -> Response[bytes]:
    """Text, or messages rendered by the chat template, as token ids."""
    state: ServerState = request.app.state.server
    body, _ = await read_body(request, _tokenize, state.options.body_timeout_s)
    state.check_model(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise ApiError("send either prompt or messages", param="prompt", code="missing_required_parameter")
    if body.chat_template is not None:
        raise unsupported("chat_template", "templates from requests are not run; start with --chat-template")
    if body.messages is not None:
        continuing = bool(body.continue_final_message)
        text = state.engine.render_chat(
            template_messages(body.messages),
            template_tools(body.tools) or None,
            add_generation_prompt=not continuing if body.add_generation_prompt is None else body.add_generation_prompt,
            continue_final_message=continuing,
            **(body.chat_template_kwargs or {}),
        )
        special = bool(body.add_special_tokens)
    else:
        text, special = body.prompt or "", body.add_special_tokens is not False
    tokens = await state.encode(text, add_special_tokens=special)
    answer: dict[str, Any] = {
        "count": len(tokens),
        "max_model_len": state.engine.ready.max_model_len,
        "tokens": tokens,
        "token_strs": [state.decode([t]) for t in tokens] if body.return_token_strs else None,
    }
    return Response(encode(answer), media_type="application/json")


@post(["/detokenize", "/v1/detokenize"], status_code=200, operation_class=operation(DetokenizeRequest, DetokenizedText))
async def detokenize(request: HttpRequest) -> Response[bytes]:
    """Token ids as text."""
    state: ServerState = request.app.state.server
    body, _ = await read_body(request, _detokenize, state.options.body_timeout_s)
    state.check_model(body.model)
    size = state.engine.ready.vocab_size
    for i, token_id in enumerate(body.tokens):
        if not 0 <= token_id < size:
            raise invalid("tokens", f"tokens[{i}]={token_id} is not a token id; they go from 0 to {size - 1}")
    text = state.decode(body.tokens, skip_special_tokens=bool(body.skip_special_tokens))
    return Response(encode({"prompt": text}), media_type="application/json")
