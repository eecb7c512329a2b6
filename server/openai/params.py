"""Bodies -> SamplingParams. Whatever is not supported is refused here, by name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from core.errors import RequestError, nearest
from core.sampling_params import MAX_LOGPROBS, GuidedDecodingParams, SamplingParams
from server.errors import ApiError, from_decode_error, invalid, unsupported
from server.openai.beams import beam_params
from server.openai.schema import ChatCompletionRequest, CompletionRequest, SamplingBody

_CONSTRAINTS = re.compile(r"guided|structured|structural|response_?format|grammar|json_?schema|constraint", re.I)
_keys_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_STRUCTURED = (
    "json",
    "json_object",
    "regex",
    "choice",
    "grammar",
    "structural_tag",
    "whitespace_pattern",
    "backend",
    "disable_fallback",
    "disable_any_whitespace",
    "disable_additional_properties",
)
_RESPONSE_FORMATS = {
    "json_object": ("schema",),
    "json_schema": ("json_schema",),
    "structural_tag": ("format", "structures", "triggers"),
    "grammar": ("grammar",),
}
_GUIDED_KINDS = ("json", "json_object", "regex", "choice", "grammar", "structural_tag")


def check_keys(raw: bytes, body: type[SamplingBody]) -> None:
    """Fail closed: a misspelt constraint must not be ignored, its writer relies on it."""
    try:
        keys = _keys_decoder.decode(raw)
    except msgspec.DecodeError as error:
        raise from_decode_error(error) from None
    known = body.__struct_fields__
    if not (unknown := keys.keys() - set(known)):
        return
    constraints = [k for k in known if _CONSTRAINTS.search(k)]
    for key in (k for k in keys if k in unknown):
        near = difflib.get_close_matches(key, constraints, n=1, cutoff=0.8)
        if near or _CONSTRAINTS.search(key):
            near = near or difflib.get_close_matches(key, constraints, n=1, cutoff=0.0)
            raise ApiError(
                f"{key} is not known and looks like a constraint on the output; did you mean {near[0]!r}?",
                param=key,
                code="unknown_parameter",
            )


def refuse_unknown(raw: bytes, body: type[msgspec.Struct], route: str) -> None:
    """For routes where a key that nobody documents is a mistake."""
    try:
        keys = _keys_decoder.decode(raw)
    except msgspec.DecodeError as error:
        raise from_decode_error(error) from None
    known = body.__struct_fields__
    for key in keys:
        if key not in known:
            raise ApiError(
                f"{key} is not a parameter of {route}{nearest(key, known)}", param=key, code="unknown_parameter"
            )


def refuse_common(body: SamplingBody) -> None:
    if body.logits_processors is not None:
        raise unsupported("logits_processors", "code from requests is not run; use logit_bias")
    if body.kv_transfer_params is not None:
        raise unsupported("kv_transfer_params", "there is no KV transfer")
    if body.vllm_xargs:
        raise unsupported("vllm_xargs", "no plugin reads it")
    if body.stream_options is not None and not body.stream:
        raise invalid("stream_options", "stream_options is only allowed when stream is true")
    if body.stream_options is not None and body.stream_options.include_obfuscation:
        raise unsupported("stream_options.include_obfuscation", "send false")


def refuse_completion(body: CompletionRequest) -> None:
    if body.suffix:
        raise unsupported("suffix", "the models served here do not fill in the middle")
    if body.prompt_embeds is not None:
        raise unsupported("prompt_embeds", "send text or token ids in prompt")
    if body.prompt is None:
        raise ApiError("prompt is required", param="prompt", code="missing_required_parameter")


def refuse_chat(body: ChatCompletionRequest) -> None:
    if body.functions is not None:
        raise unsupported("functions", "use tools")
    if body.function_call is not None:
        raise unsupported("function_call", "use tool_choice")
    if body.modalities is not None and body.modalities != ["text"]:
        raise unsupported("modalities", 'only ["text"] is')
    if body.audio is not None:
        raise unsupported("audio", "the models served here write text")
    if body.prediction is not None:
        raise unsupported("prediction", "leave it out; the answer is the same")
    if body.web_search_options is not None:
        raise unsupported("web_search_options", "the server does not search the web")
    if body.verbosity not in (None, "medium"):
        raise unsupported("verbosity", "say in the system message how long answers should be")
    if body.service_tier not in (None, "auto", "default"):
        raise unsupported("service_tier", "there is one tier, `default`")
    if body.store:
        raise unsupported("store", "completions are not stored here; send false, or leave it out")
    if body.moderation is not None:
        raise unsupported("moderation", "the server does not moderate")
    if body.mm_processor_kwargs:
        raise unsupported("mm_processor_kwargs", "the models served here read text")
    if body.chat_template is not None:
        raise unsupported("chat_template", "templates from requests are not run; start with --chat-template")
    if body.top_logprobs is not None and not body.logprobs:
        raise invalid("top_logprobs", "top_logprobs needs logprobs: true")
    if body.top_logprobs is not None and not 0 <= body.top_logprobs <= MAX_LOGPROBS:
        raise invalid("top_logprobs", f"top_logprobs={body.top_logprobs} must be from 0 to {MAX_LOGPROBS}")


def guided(body: SamplingBody) -> GuidedDecodingParams | None:
    """The one constraint of a body, whichever spelling it has. Two are an error that names both."""
    found: dict[str, dict[str, Any]] = {}
    if body.response_format is not None and (value := _response_format(body.response_format)) is not None:
        found["response_format"] = value
    for kind in _GUIDED_KINDS:
        name = kind if kind == "structural_tag" else f"guided_{kind}"
        given = getattr(body, name)
        if given is not None and given is not False:
            found[name] = {kind: tuple(given) if isinstance(given, list) else given}
    if body.structured_outputs is not None:
        for key in body.structured_outputs:
            if key not in _STRUCTURED:
                near = difflib.get_close_matches(key, _STRUCTURED, n=1, cutoff=0.0)
                raise ApiError(
                    f"structured_outputs.{key} is not known; did you mean {near[0]!r}?",
                    param=f"structured_outputs.{key}",
                    code="unknown_parameter",
                )
        for key in ("disable_any_whitespace", "disable_additional_properties"):
            if body.structured_outputs.get(key):
                raise unsupported(f"structured_outputs.{key}", "say it in the schema")
        given = {k: v for k, v in body.structured_outputs.items() if k in _GUIDED_KINDS and v not in (None, False)}
        if not given:
            raise invalid("structured_outputs", f"structured_outputs holds none of {', '.join(_GUIDED_KINDS)}")
        for key in ("backend", "whitespace_pattern"):
            if body.structured_outputs.get(key) is not None:
                given[key] = body.structured_outputs[key]
        found["structured_outputs"] = given
    if len(found) > 1:
        raise invalid(list(found)[1], f"{' and '.join(found)} exclude each other; send one constraint")
    extras = {
        k: v
        for k, v in (("backend", body.guided_decoding_backend), ("whitespace_pattern", body.guided_whitespace_pattern))
        if v is not None
    }
    if not found:
        if body.guided_whitespace_pattern is not None:
            raise invalid("guided_whitespace_pattern", "guided_whitespace_pattern needs guided_json")
        return None
    ((name, values),) = found.items()
    try:
        return msgspec.convert({**extras, **values}, GuidedDecodingParams)
    except RequestError as error:
        raise ApiError(str(error), param=name, code="invalid_value") from None
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, RequestError):
            raise ApiError(str(error.__cause__), param=name, code="invalid_value") from None
        raise ApiError(f"{name} has the wrong type: {error}", param=name, code="invalid_type") from None


def _response_format(value: dict[str, Any]) -> dict[str, Any] | None:
    kind = value.get("type")
    if kind is None:
        raise ApiError(
            "response_format.type is required", param="response_format.type", code="missing_required_parameter"
        )
    allowed = _RESPONSE_FORMATS.get(kind, ()) if isinstance(kind, str) else ()
    holder = value.get("json_schema")
    places = [("response_format", value, ("type", *allowed))] if allowed else []
    if kind == "json_schema" and isinstance(holder, dict):
        places.append(("response_format.json_schema", holder, ("name", "description", "schema", "strict")))
    for place, keys, known in places:
        for key in keys:
            if key not in known:
                raise ApiError(
                    f"{place}.{key} is not known; it takes {', '.join(known)}",
                    param=f"{place}.{key}",
                    code="unknown_parameter",
                )
    if kind == "text":
        return None
    if kind == "json_object":
        schema = value.get("schema")
        return {"json_object": True} if schema is None else {"json": schema}
    if kind == "json_schema":
        schema = holder.get("schema") if isinstance(holder, dict) else None
        if not isinstance(schema, dict | bool):
            raise ApiError(
                "response_format.json_schema.schema is required, a JSON schema",
                param="response_format.json_schema.schema",
                code="missing_required_parameter",
            )
        return {"json": schema}
    if kind == "structural_tag":
        return {"structural_tag": value}
    if kind == "grammar" and isinstance(value.get("grammar"), str):
        return {"grammar": value["grammar"]}
    raise invalid(
        "response_format.type",
        f"response_format.type={kind!r} is not one of text, json_object, json_schema, structural_tag",
    )


def logit_bias(given: dict[str, float] | None, vocab_size: int) -> dict[int, float] | None:
    if not given:
        return None
    biases = {}
    for key, bias in given.items():
        try:
            token_id = int(key)
        except ValueError:
            raise invalid("logit_bias", f"logit_bias has the key {key!r}, which is not a token id") from None
        if not 0 <= token_id < vocab_size:
            raise invalid("logit_bias", f"logit_bias names token {token_id}; ids go from 0 to {vocab_size - 1}")
        biases[token_id] = bias
    return biases


def sampling_params(
    body: SamplingBody,
    *,
    defaults: Mapping[str, Any],
    vocab_size: int,
    max_n: int,
    max_tokens: int | None,
    logprobs: int | None,
    constraint: GuidedDecodingParams | None,
) -> SamplingParams:
    """What the request says, else the model's defaults, else OpenAI's."""
    refuse_common(body)
    for name in ("n", "best_of"):
        value = getattr(body, name)
        if value is not None and value > max_n:
            raise invalid(name, f"{name}={value} is more than this server grants ({max_n})")
    if body.stream and body.best_of is not None and body.best_of > (body.n or 1):
        raise invalid("best_of", "best_of cannot be streamed: which answers are the best is known at the end")
    if body.prompt_logprobs is not None and body.stream and not body.echo:
        raise invalid("prompt_logprobs", "prompt_logprobs is not available when stream is true")
    options: dict[str, Any] = dict(defaults)
    for name in (
        "n",
        "best_of",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "seed",
        "ignore_eos",
        "min_tokens",
        "include_stop_str_in_output",
        "skip_special_tokens",
        "spaces_between_special_tokens",
        "prompt_logprobs",
        "allowed_token_ids",
        "truncate_prompt_tokens",
    ):
        value = getattr(body, name)
        if value is not None:
            options[name] = value
    if isinstance(options.get("top_k"), float):
        options["top_k"] = int(options["top_k"])
    stop = body.stop
    params = SamplingParams(
        **options,
        max_tokens=max_tokens,
        logprobs=logprobs,
        stop=(stop,) if isinstance(stop, str) else tuple(stop or ()),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        bad_words=tuple(body.bad_words or ()),
        logit_bias=logit_bias(body.logit_bias, vocab_size),
        guided_decoding=constraint,
    )
    beam_params(body, params)
    return params
