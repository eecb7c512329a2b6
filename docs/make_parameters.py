"""Writes docs/parameters.md: what becomes of every parameter of the OpenAI routes. python docs/make_parameters.py

tests/server/test_parameters.py sends each value below to a server, and holds the table to the openai client's own list.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NONE = object()


@dataclass(frozen=True)
class P:
    """One parameter: what becomes of it, a value that is taken, one that is refused by its name."""

    says: str = "yes"
    good: Any = NONE
    bad: Any = NONE
    also: dict[str, Any] = field(default_factory=dict)
    """What the body holds besides, so that the value makes sense."""


NO_EFFECT = "taken; nothing changes"
SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
FUNCTION = {"name": "f", "description": "d", "parameters": SCHEMA}
TOOLS = [{"type": "function", "function": FUNCTION}]
USER = [{"role": "user", "content": "the engine"}]
IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]

SAMPLING: dict[str, P] = {
    "model": P("a name that is served, or none; another is 404", "also-tiny", "other"),
    "temperature": P(good=0.5, bad=-1),
    "top_p": P(good=0.5, bad=0),
    "n": P("1 to `--max-n`", 2, 0),
    "max_tokens": P(good=3, bad=-1),
    "stop": P("up to 64 strings", ["a", "b"], [""]),
    "seed": P("the same tokens whatever else is in the batch", 7, 2**63),
    "presence_penalty": P(good=0.5, bad=3),
    "frequency_penalty": P(good=0.5, bad=-3),
    "logit_bias": P("up to 1024 tokens", {"5": -100}, {"5": 101}),
    "stream": P(good=True),
    "stream_options": P(
        "`include_usage`, `continuous_usage_stats`; `include_obfuscation: true` is refused",
        {"include_usage": True, "continuous_usage_stats": True, "include_obfuscation": False},
        {"include_obfuscation": True},
        {"stream": True},
    ),
    "user": P(NO_EFFECT, "u"),
    "best_of": P("not with `stream`", 3, 129),
    "use_beam_search": P(
        "follows `n` answers, or `best_of`, at most 10; not with `stream`, penalties, biases, `stop` or constraints",
        True,
        "yes",
        {"n": 2},
    ),
    "top_k": P("0 or -1: off", 5, -2),
    "min_p": P(good=0.1, bad=2),
    "repetition_penalty": P(good=1.2, bad=0),
    "length_penalty": P("of beam search", 0.5, 11, {"use_beam_search": True}),
    "early_stopping": P("of beam search: true, false or `never`", "never", "soon", {"use_beam_search": True}),
    "ignore_eos": P(good=True),
    "min_tokens": P(good=2, bad=-1),
    "stop_token_ids": P(good=[280], bad=[100000]),
    "include_stop_str_in_output": P(good=True),
    "skip_special_tokens": P(good=False),
    "spaces_between_special_tokens": P(good=False),
    "truncate_prompt_tokens": P("keeps the last tokens; -1: what leaves room for `max_tokens`", 2, -2),
    "allowed_token_ids": P("no other token is chosen; a grammar wins over it", [280, 281], []),
    "bad_words": P(good=["model"], bad=[""]),
    "prompt_logprobs": P("up to 20; not with `stream`", 1, 21),
    "echo": P(good=True),
    "add_special_tokens": P(good=False),
    "response_format": P(
        "`text`, `json_object`, `json_schema`, `structural_tag`", FORMAT, {"type": "xml"}, {"max_tokens": 20}
    ),
    "structured_outputs": P(
        "`json`, `json_object`, `regex`, `choice`, `grammar`, `structural_tag`, and `backend`",
        {"choice": ["a", "b"]},
        {"chioce": ["a"]},
    ),
    "guided_json": P(good=SCHEMA, bad=7, also={"max_tokens": 20}),
    "guided_regex": P(good="[ab]", bad=7),
    "guided_choice": P(good=["a", "b"], bad=[]),
    "guided_grammar": P(good='start: "a"', bad=7),
    "guided_json_object": P(good=True, bad=7),
    "guided_decoding_backend": P(good="llguidance", also={"guided_choice": ["a"]}),
    "guided_whitespace_pattern": P("with a schema", " ?", " ?", {}),
    "structural_tag": P(
        good='{"structures": [{"begin": "<a>", "schema": {}, "end": "</a>"}], "triggers": ["<a>"]}', bad=7
    ),
    "priority": P("counts with `--scheduling-policy priority`", 1, "high"),
    "cache_salt": P("requests with different salts share no prefix", "s", 7),
    "request_id": P("becomes part of the answer's `id`", "mine", 7),
    "return_token_ids": P(good=True),
    "return_tokens_as_token_ids": P(good=True),
    "logits_processors": P("refused: code from requests is not run", bad=["x"]),
    "kv_transfer_params": P("refused", bad={}),
    "vllm_xargs": P("refused: no plugin reads it", {}, {"a": 1}),
}

CHAT: dict[str, P] = {
    **SAMPLING,
    "messages": P("text; `developer` is `system`; images, audio and files are refused", USER, IMAGE),
    "max_completion_tokens": P(good=3, bad=0),
    "logprobs": P(good=True, bad=3),
    "top_logprobs": P("up to 20", 2, 21, {"logprobs": True}),
    "tools": P(
        "functions; `strict` holds", TOOLS, [{"type": "custom", "custom": {"name": "c"}}], {"tool_choice": "none"}
    ),
    "tool_choice": P("`none`, `auto`, `required`, a function, `allowed_tools`", "none", "some", {"tools": TOOLS}),
    "parallel_tool_calls": P(good=False, also={"tools": TOOLS, "tool_choice": "none"}),
    "functions": P("refused: use `tools`", bad=[FUNCTION]),
    "function_call": P("refused: use `tool_choice`", bad="auto"),
    "modalities": P('`["text"]`', ["text"], ["text", "audio"]),
    "audio": P("refused", bad={"voice": "alloy", "format": "wav"}),
    "prediction": P("refused", bad={"type": "content", "content": "a"}),
    "reasoning_effort": P("reaches the chat template", "low", 7),
    "verbosity": P("`medium`", "medium", "low"),
    "web_search_options": P("refused", bad={}),
    "service_tier": P("`auto`, `default`", "default", "flex"),
    "store": P("`false`", False, True),
    "metadata": P(NO_EFFECT, {"a": "b"}),
    "safety_identifier": P(NO_EFFECT, "u"),
    "prompt_cache_key": P(NO_EFFECT, "k"),
    "prompt_cache_retention": P(NO_EFFECT, "24h"),
    "prompt_cache_options": P(NO_EFFECT, {}),
    "moderation": P("refused", bad={"model": "m"}),
    "add_generation_prompt": P(good=False, bad="no"),
    "continue_final_message": P(
        good=True, bad="yes", also={"messages": [*USER, {"role": "assistant", "content": "the model"}]}
    ),
    "chat_template": P("refused: templates from requests are not run", bad="{{ messages }}"),
    "chat_template_kwargs": P(good={"enable_thinking": False}, bad={"messages": []}),
    "documents": P("reach the chat template", [{"text": "a"}], "a"),
    "include_reasoning": P(good=False),
    "mm_processor_kwargs": P("refused", {}, {"a": 1}),
}

TEXT: dict[str, P] = {
    **SAMPLING,
    "prompt": P("text, token ids, or up to `--max-prompts` of either", ["the", "engine"], []),
    "logprobs": P("up to 20", 2, 21),
    "suffix": P("refused: no model here fills in the middle", "", "b"),
    "prompt_embeds": P("refused", bad="x"),
}

EMBEDDINGS: dict[str, P] = {
    "input": P("text, token ids, or up to 2048 of either", [[1, 2], [3]], []),
    "model": SAMPLING["model"],
    "dimensions": P("the first so many numbers, at unit length again", 8, 33),
    "encoding_format": P("`float`, `base64`", "base64", "bytes"),
    "user": SAMPLING["user"],
    "messages": P("a chat instead of `input`", USER, IMAGE, {"input": None}),
    "truncate_prompt_tokens": P("keeps the last tokens; -1: what the model takes", 2, -2),
    "truncation_side": P("`left`", "left", "right"),
    "add_special_tokens": P(good=False),
    "priority": SAMPLING["priority"],
    "cache_salt": SAMPLING["cache_salt"],
    "request_id": SAMPLING["request_id"],
    "mm_processor_kwargs": P("refused", {}, {"a": 1}),
    "normalize": P(good=False, bad="no"),
    "embed_dtype": P("`float32`", "float32", "float16"),
    "endianness": P("`little`, `native`", "little", "big"),
    "add_generation_prompt": P("with `messages`", True, True, {}),
    "continue_final_message": P("with `messages`", False, True, {}),
    "chat_template": P("refused: templates from requests are not run", bad="x"),
    "chat_template_kwargs": P("with `messages`", {}, {}, {}),
}

RESPONSES: dict[str, P] = {
    "input": P("text or items; images, audio and files are refused", [{"role": "user", "content": "a"}], []),
    "model": SAMPLING["model"],
    "instructions": P("the system message", "be short", 7),
    "max_output_tokens": P(good=3, bad=0),
    "temperature": SAMPLING["temperature"],
    "top_p": SAMPLING["top_p"],
    "top_logprobs": P("up to 20", 2, 21),
    "tools": P(
        "functions; `strict` holds; built-in tools are refused",
        [{"type": "function", **FUNCTION}],
        [{"type": "web_search"}],
        {"tool_choice": "none"},
    ),
    "tool_choice": P(
        "`none`, `auto`, `required`, a function, `allowed_tools`",
        "none",
        {"type": "web_search"},
        {"tools": [{"type": "function", **FUNCTION}]},
    ),
    "parallel_tool_calls": P(good=False),
    "text": P("`format`; `verbosity` `medium`", {"format": {"type": "text"}}, {"verbosity": "low"}),
    "reasoning": P(
        "`effort` reaches the chat template; `summary` `auto`, and reasoning comes whole",
        {"effort": "low", "summary": "auto"},
        {"summary": "detailed"},
    ),
    "include": P(
        "`message.output_text.logprobs`; `reasoning.encrypted_content` changes nothing",
        ["message.output_text.logprobs"],
        ["file_search_call.results"],
    ),
    "metadata": P("comes back", {"a": "b"}),
    "stream": SAMPLING["stream"],
    "stream_options": P(
        "`include_obfuscation: false`", {"include_obfuscation": False}, {"include_obfuscation": True}, {"stream": True}
    ),
    "store": P("`false`", False, True),
    "truncation": P("`disabled`", "disabled", "auto"),
    **{k: CHAT[k] for k in ("service_tier", "user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")},
    "prompt_cache_options": CHAT["prompt_cache_options"],
    "access_programs": P("refused", bad={}),
    "background": P("`false`", False, True),
    "background_options": P("refused", bad={}),
    "context_management": P("refused", bad=[{"type": "compaction"}]),
    "conversation": P("refused", bad="conv_1"),
    "image": P("refused", bad={}),
    "max_tool_calls": P("refused: it counts calls of built-in tools", bad=1),
    "moderation": CHAT["moderation"],
    "previous_response_id": P("refused: nothing is stored", bad="resp_1"),
    "prompt": P("refused: nothing is stored", bad={"id": "pmpt_1"}),
    **{
        k: CHAT[k]
        for k in (
            "top_k",
            "min_p",
            "repetition_penalty",
            "presence_penalty",
            "frequency_penalty",
            "seed",
            "stop",
            "stop_token_ids",
            "include_stop_str_in_output",
            "ignore_eos",
            "min_tokens",
            "skip_special_tokens",
            "priority",
            "cache_salt",
            "request_id",
            "chat_template_kwargs",
            "structured_outputs",
        )
    },
}

# path -> what a body must have, its parameters
ROUTES: dict[str, tuple[dict[str, Any], dict[str, P]]] = {
    "/v1/chat/completions": ({"messages": USER, "max_tokens": 4}, CHAT),
    "/v1/completions": ({"prompt": "the engine", "max_tokens": 4}, TEXT),
    "/v1/embeddings": ({"input": "the engine"}, EMBEDDINGS),
    "/v1/responses": ({"input": "the engine", "max_output_tokens": 4}, RESPONSES),
}


def page() -> str:
    lines = [
        "# Every parameter of the OpenAI routes",
        "",
        "What is refused is refused by name: HTTP 400, and `param` says which. A value of the wrong type or out of range is too.",
        "This page is made by docs/make_parameters.py, and each line of it is tried by a test.",
    ]
    for path, (_, parameters) in ROUTES.items():
        lines += ["", f"## {path}", "", "| parameter | |", "| --- | --- |"]
        lines += [f"| `{name}` | {p.says} |" for name, p in parameters.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (Path(__file__).parent / "parameters.md").write_text(page())
