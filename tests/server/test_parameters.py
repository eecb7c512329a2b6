"""Every parameter that the openai client knows is supported or refused by name, and so is every field of our own bodies.

The list is read from the client's own types, so that a parameter which a new version documents is missed by no one.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import httpx
import pytest

from server.openai import schema

DOCS = Path(__file__).parents[2] / "docs"
_spec = importlib.util.spec_from_file_location("make_parameters", DOCS / "make_parameters.py")
made = sys.modules["make_parameters"] = importlib.util.module_from_spec(_spec)  # a dataclass looks for its module
_spec.loader.exec_module(made)

BODIES = {
    "/v1/chat/completions": (schema.ChatCompletionRequest, "chat.completion_create_params", "CompletionCreateParams"),
    "/v1/completions": (schema.CompletionRequest, "completion_create_params", "CompletionCreateParams"),
    "/v1/embeddings": (schema.EmbeddingsRequest, "embedding_create_params", "EmbeddingCreateParams"),
    "/v1/responses": (schema.ResponsesRequest, "responses.response_create_params", "ResponseCreateParams"),
}
OF_VLLM = {
    *("top_k", "min_p", "repetition_penalty", "best_of", "ignore_eos", "min_tokens", "stop_token_ids", "echo"),
    *("include_stop_str_in_output", "skip_special_tokens", "prompt_logprobs", "priority", "cache_salt"),
    *("return_token_ids", "allowed_token_ids", "truncate_prompt_tokens"),
}
OF_CHAT = {"add_generation_prompt", "continue_final_message", "chat_template_kwargs"}


def documented(module: str, name: str) -> set[str]:
    """The keys of the client's TypedDicts (one for streams, one for the rest) for this route."""
    found = importlib.import_module(f"openai.types.{module}")
    kinds = [v for k, v in vars(found).items() if k.startswith(name) and hasattr(v, "__annotations__")]
    kinds = [v for v in kinds if isinstance(v, type)]
    assert kinds, f"{module} has no {name}"
    # a parent's keys are among its child's
    return {key for kind in kinds for key in kind.__annotations__}


@pytest.mark.parametrize("path", made.ROUTES)
def test_the_table_has_what_the_client_documents_and_what_we_take(path):
    struct, module, name = BODIES[path]
    keys, fields, table = documented(module, name), set(struct.__struct_fields__), set(made.ROUTES[path][1])
    assert len(keys) >= 5 and keys - fields == set(), "documented by the client and unknown here"
    assert table == fields
    assert path not in ("/v1/chat/completions", "/v1/completions") or fields >= OF_VLLM
    assert path != "/v1/chat/completions" or fields >= OF_CHAT


def rows():
    for path, (body, parameters) in made.ROUTES.items():
        for name, p in parameters.items():
            yield pytest.param(path, body, name, p, id=f"{path}-{name}")


def ends_well(answer: httpx.Response) -> bool:
    return answer.status_code == 200 and '"error":{' not in answer.text


@pytest.mark.parametrize(("path", "body", "name", "p"), list(rows()))
def test_it_is_supported_or_refused_by_name(server, path, body, name, p):
    assert p.good is not made.NONE or p.bad is not made.NONE
    if p.good is not made.NONE:
        whole = {**body, **p.also, name: p.good}
        if name == "guided_whitespace_pattern":
            whole |= {"guided_json": made.SCHEMA, "max_tokens": 20}
        if path == "/v1/embeddings" and p.says == "with `messages`":
            whole |= {"input": None, "messages": made.USER}
        answer = httpx.post(server.url + path, json=whole, timeout=60)
        assert ends_well(answer), answer.text
    if p.bad is not made.NONE:
        answer = httpx.post(server.url + path, json={**body, **p.also, name: p.bad}, timeout=60)
        assert answer.status_code == (404 if name == "model" else 400), answer.text
        param = answer.json()["error"]["param"]
        assert param and param.replace("[", ".").split(".")[0] == name, answer.text


def test_the_page_is_up_to_date():
    assert (DOCS / "parameters.md").read_text() == made.page(), "run python docs/make_parameters.py"
