"""Bytes of a request -> a checked body, SamplingParams, and errors in the user's own terms."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from core.errors import RequestError, nearest
from core.sampling_params import SamplingParams
from server.errors import ApiError
from server.openai.schema import GUIDED, REFUSED, ChatBody, CompletionBody, SamplingBody

T = TypeVar("T", bound=SamplingBody)

_PATH = re.compile(r" - at `\$\.?([^`]*)`")


def parse_body(data: bytes, cls: type[T]) -> T:
    """Raises ApiError 400 for what is no JSON, has a wrong type, or asks for what is not there."""
    try:
        raw = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError(400, f"the body is not valid JSON: {error}", code="invalid_json") from error
    if not isinstance(raw, dict):
        raise ApiError(400, f"the body is a JSON {type(raw).__name__}, not an object")
    known = set(cls.__struct_fields__)
    for key, value in raw.items():
        if value is None or (key in known and key != "suffix"):
            continue
        if key in REFUSED:
            raise ApiError(400, f"{key!r} is not supported: {REFUSED[key]}", param=key, code="unsupported_parameter")
        # a constraint that were ignored would give output that breaks it in silence
        if key in GUIDED:
            raise ApiError(
                400, f"{key!r} is not supported: guided decoding is not there yet", param=key,
                code="unsupported_parameter",
            )
        if key.startswith(("guided_", "structured", "response_format")):
            raise ApiError(400, f"{key!r} is not a known constraint{nearest(key, GUIDED)}", param=key)
    try:
        return msgspec.convert({k: v for k, v in raw.items() if v is not None}, cls)
    except msgspec.ValidationError as error:
        message = str(error)
        if match := re.search(r"missing required field `(\w+)`", message):
            raise ApiError(400, f"{match[1]!r} is missing", param=match[1], code="missing_required_parameter") from error
        path = _PATH.search(message)
        param = path[1].split("[")[0].split(".")[0] if path else None
        raise ApiError(400, _PATH.sub("", f"{param or 'body'}: {message}"), param=param, code="invalid_type") from error


def sampling_params(body: ChatBody | CompletionBody, defaults: Mapping[str, Any]) -> SamplingParams:
    """`defaults`: the model's generation_config.json, which speaks where the request is silent."""

    def choose(name: str, otherwise: Any) -> Any:
        value = getattr(body, name)
        return value if value is not None else defaults.get(name, otherwise)

    if isinstance(body, ChatBody):
        max_tokens = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
        if body.top_logprobs is not None and not body.logprobs:
            raise RequestError("top_logprobs needs logprobs=true", param="top_logprobs")
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
    else:
        max_tokens = 16 if body.max_tokens is None else body.max_tokens
        logprobs = body.logprobs
    prompt_logprobs = body.prompt_logprobs
    if isinstance(body, CompletionBody) and body.echo and logprobs is not None and prompt_logprobs is None:
        prompt_logprobs = logprobs
    bias = None
    if body.logit_bias:
        try:
            bias = {int(k): v for k, v in body.logit_bias.items()}
        except ValueError as error:
            raise RequestError("logit_bias maps token ids (as text) to numbers", param="logit_bias") from error
    if body.stream and body.best_of is not None and body.best_of > (body.n or 1):
        raise RequestError("best_of cannot be streamed; leave stream out", param="best_of")
    stop = body.stop
    return SamplingParams(
        n=1 if body.n is None else body.n,
        best_of=body.best_of,
        temperature=choose("temperature", 1.0),
        top_p=choose("top_p", 1.0),
        top_k=choose("top_k", 0),
        min_p=choose("min_p", 0.0),
        repetition_penalty=choose("repetition_penalty", 1.0),
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        seed=body.seed,
        max_tokens=max_tokens,
        min_tokens=body.min_tokens,
        stop=(stop,) if isinstance(stop, str) else tuple(stop or ()),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        include_stop_str_in_output=body.include_stop_str_in_output,
        ignore_eos=body.ignore_eos,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        logit_bias=bias,
        bad_words=tuple(body.bad_words or ()),
        skip_special_tokens=body.skip_special_tokens,
        spaces_between_special_tokens=body.spaces_between_special_tokens,
        use_beam_search=body.use_beam_search,
    )
