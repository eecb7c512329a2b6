"""Random and mutated requests to every POST route of a server: nothing may answer 5xx, break, or leave anything behind.

python benchmarks/fuzz.py [--requests 50000] [--seed 0] [--url http://...]

Half of them change a good body a little (keys taken away, doubled, given odd values at any depth; keys of the route's schema
added), a quarter garble the bytes, the rest send other content types, encodings, query strings, or hang up midway.
Without --url a server over the demo model is started.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {}}}}}
MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": [{"type": "text", "text": "the"}]}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
SEEDS: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [
        {"messages": MESSAGES, "max_tokens": 2, "stream": True, "stream_options": {"include_usage": True}},
        {"messages": MESSAGES, "max_tokens": 3, "tools": [TOOL], "tool_choice": "required", "logprobs": True},
        {
            "messages": MESSAGES,
            "max_completion_tokens": 3,
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}},
        },
        {"messages": MESSAGES, "max_tokens": 2, "n": 2, "seed": 1, "logit_bias": {"5": 3}, "stop": ["a", "b"]},
    ],
    "/v1/completions": [
        {"prompt": "the engine", "max_tokens": 2, "logprobs": 2, "echo": True, "stream": True},
        {"prompt": [[5, 6], [7]], "max_tokens": 2, "temperature": 0.5, "top_k": 3, "min_p": 0.1, "bad_words": ["the"]},
        {"prompt": ["a", "b"], "max_tokens": 3, "guided_regex": "[ab]+", "priority": 1, "cache_salt": "x"},
        {"prompt": "x", "max_tokens": 2, "structured_outputs": {"choice": ["yes", "no"]}, "prompt_logprobs": 1},
        {"prompt": "the engine", "max_tokens": 2, "truncate_prompt_tokens": 1, "allowed_token_ids": [7, 270]},
        {
            "prompt": "x",
            "max_tokens": 3,
            "use_beam_search": True,
            "n": 2,
            "length_penalty": 0.5,
            "early_stopping": True,
        },
    ],
    "/v1/responses": [
        {"input": "the", "max_output_tokens": 2, "stream": True, "tools": [{"type": "function", "name": "f"}]},
        {
            "input": [{"role": "user", "content": [{"type": "input_text", "text": "a"}]}],
            "max_output_tokens": 3,
            "text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}},
            "metadata": {"a": "b"},
        },
    ],
    "/v1/embeddings": [
        {"input": ["the", "engine"], "encoding_format": "base64"},
        {"input": [[5, 6, 7]], "dimensions": 8},
    ],
    "/v1/score": [{"text_1": "a", "text_2": ["b", "c"]}],
    "/v1/rerank": [{"query": "a", "documents": ["b", "c"], "top_n": 1}],
    "/v1/tokenize": [{"prompt": "the engine", "add_special_tokens": True}, {"messages": MESSAGES}],
    "/v1/detokenize": [{"tokens": [5, 6, 7]}],
    "/v1/messages": [
        {
            "model": "",
            "max_tokens": 2,
            "system": "s",
            "messages": [
                {"role": "user", "content": "the"},
                {"role": "assistant", "content": [{"type": "text", "text": "a"}]},
            ],
            "tools": [{"name": "f", "input_schema": SCHEMA}],
            "stream": True,
        }
    ],
}
SAME_AS = {
    "/v1/responses/input_tokens": "/v1/responses",
    "/score": "/v1/score",
    "/rerank": "/v1/rerank",
    "/v2/rerank": "/v1/rerank",
    "/tokenize": "/v1/tokenize",
    "/detokenize": "/v1/detokenize",
    "/v1/messages/count_tokens": "/v1/messages",
}
WITHOUT_BODY = {"/reset_prefix_cache", "/start_profile", "/stop_profile"}

DEEP: Any = "x"
for _ in range(200):
    DEEP = [DEEP]
ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 1.5, -0.0, 1e308, 10**18, 2**31, -(2**31) - 1, 2**63, -(2**63), 2**64, 10**400),
    *(
        "",
        " ",
        "a",
        "\x00",
        "\ud800",
        "\u202e",
        "\U0001f600" * 3,
        "a" * 3000,
        "{{ 7 * 7 }}",
        "{% for %}",
        "../../etc/passwd",
    ),
    *(
        "[a-z",
        "(a+)+$",
        "auto",
        "required",
        "none",
        "json_object",
        "assistant",
        "tool",
        "nan",
        "<|im_start|>",
        "\r\nX: y",
    ),
    *([], {}, [None], [[]], {"": None}, [1, "a"], [1] * 300, {"type": "object"}, {"type": "text"}, {"type": []}, DEEP),
    {"$ref": "#"},
    {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}},
    {"regex": "a{1,100000}"},
    {"role": "user", "content": None},
    {"url": "http://127.0.0.1/x"},
]
_RAW = [
    b"",
    b"\x00",
    b"\xff\xfe",
    b"NaN",
    b"1e999",
    b'"',
    b"{",
    b"}",
    b"[" * 500,
    b"\\u0000",
    b"-",
    b"{}" * 3,
    b",",
    b":",
]


@dataclass
class Findings:
    sent: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    """What no request may lead to, with the request"""


class Mutator:
    def __init__(self, seed: int, keys: dict[str, list[str]], paths: list[str]) -> None:
        """keys: route -> the fields of its body. paths: all POST routes."""
        self._rng = random.Random(seed)
        self._keys, self._paths = keys, paths

    def request(self) -> tuple[str, dict[str, str], bytes, bool]:
        """(path, headers, body, hang up midway)"""
        rng = self._rng
        path = rng.choice(self._paths)
        seeds = SEEDS.get(SAME_AS.get(path, path), [{}])
        body = copy.deepcopy(rng.choice(seeds))
        headers = {"content-type": "application/json"}
        for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
            self._change(path, body)
        raw = self._encode(body)
        kind = rng.random()
        if kind < 0.25:
            raw = self._garble(raw)
        elif kind < 0.33:
            headers["content-type"] = rng.choice(
                ("", "text/plain", "application/json; charset=utf-16", "multipart/form-data")
            )
        elif kind < 0.38:
            headers[rng.choice(("content-encoding", "x-request-id", "accept", "authorization", "traceparent"))] = (
                rng.choice(("gzip", "a" * 200, "\t", "Bearer x", "00-0-0-0", "identity"))
            )
        elif kind < 0.42:
            path += rng.choice(("?a=b", "?" + "x" * 2000, "/", "//", "%00", "?stream=true"))
        return path, headers, raw, kind > 0.97

    def _change(self, path: str, body: Any) -> None:
        rng = self._rng
        where = body
        # down to some depth
        while isinstance(where, dict | list) and where and rng.random() < 0.5:
            next_ = where[rng.choice(list(where))] if isinstance(where, dict) else rng.choice(where)
            if not isinstance(next_, dict | list):
                break
            where = next_
        value = copy.deepcopy(rng.choice(ODD))
        if isinstance(where, list):
            at = rng.randrange(len(where) + 1)
            where[at : at + rng.randrange(2)] = [value] * rng.choice((1, 1, 1, 50))
            return
        names = list(where)
        known = self._keys.get(path, [])
        action = rng.random()
        if action < 0.2 and names:
            del where[rng.choice(names)]
        elif action < 0.6 and names:
            where[rng.choice(names)] = value
        elif action < 0.95 and known:
            where[rng.choice(known)] = value
        else:
            where[rng.choice(("", "x", "guided_x", "__class__", "a" * 500))] = value

    def _encode(self, body: Any) -> bytes:
        text = json.dumps(body, ensure_ascii=self._rng.random() < 0.5)
        return text.encode("utf-8", "surrogatepass")

    def _garble(self, raw: bytes) -> bytes:
        rng = self._rng
        data = bytearray(raw)
        for _ in range(rng.choice((1, 1, 2, 8))):
            at = rng.randrange(len(data) + 1)
            match rng.randrange(4):
                case 0:
                    del data[at : at + rng.randrange(1, 20)]
                case 1:
                    data[at:at] = rng.choice(_RAW)
                case 2:
                    data[at : at + 1] = bytes([rng.randrange(256)])
                case 3:
                    data[at:at] = data[max(0, at - rng.randrange(60)) : at]
        return bytes(data)


def _wrong(status: int, content_type: str, body: bytes) -> str | None:
    """Why an answer is one that nobody may get."""
    if status >= 500:
        return f"status {status}: {body[:500]!r}"
    if status >= 400:
        try:
            error = json.loads(body)["error"]
            if not (isinstance(error["message"], str) and error["message"]):
                return f"status {status} without a message: {body[:300]!r}"
            if "Traceback" in error["message"] or 'File "' in error["message"]:
                return f"status {status} leaks: {body[:300]!r}"
        except (ValueError, KeyError, TypeError):
            return f"status {status} in another shape than OpenAI's or Anthropic's: {body[:300]!r}"
    if "event-stream" in content_type:
        for line in body.split(b"\n"):
            if line.startswith(b"data: {") and b'"error":{' in line:
                error = json.loads(line[6:]).get("error")
                if isinstance(error, dict) and error.get("type") in ("internal_error", "server_error", "api_error"):
                    return f"an error within the stream: {line[:500]!r}"
    return None


async def attack(url: str, count: int, seed: int = 0, at_once: int = 16) -> Findings:
    findings = Findings()
    limits = httpx.Limits(max_connections=at_once + 4)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        document = (await client.get("/openapi.json")).json()
        schemas = document["components"]["schemas"]
        paths, keys = [], {}
        for path, methods in document["paths"].items():
            if "post" not in methods:
                continue
            assert path in WITHOUT_BODY or SAME_AS.get(path, path) in SEEDS, f"no seed for {path}; add one to SEEDS"
            paths.append(path)
            content = methods["post"].get("requestBody", {}).get("content", {})
            reference = content.get("application/json", {}).get("schema", {}).get("$ref", "")
            keys[path] = sorted(schemas.get(reference.rpartition("/")[2], {}).get("properties", {}))
        mutator = Mutator(seed, keys, paths)

        async def worker() -> None:
            while findings.sent < count:
                findings.sent += 1
                path, headers, raw, hang_up = mutator.request()
                what = f"POST {path} {headers} {raw[:2000]!r}"
                try:
                    async with client.stream("POST", path, headers=headers, content=raw) as answer:
                        status, kind = answer.status_code, answer.headers.get("content-type", "")
                        if hang_up:
                            findings.statuses["hung up"] += 1
                            continue
                        body = await answer.aread()
                except httpx.TimeoutException:
                    findings.wrong.append(f"no answer within 60 s: {what}")
                    continue
                except (httpx.LocalProtocolError, httpx.InvalidURL):
                    findings.statuses["not sendable"] += 1
                    continue
                except httpx.TransportError as error:
                    findings.wrong.append(f"{error!r}: {what}")
                    continue
                findings.statuses[str(status)] += 1
                if (why := _wrong(status, kind, body)) is not None:
                    findings.wrong.append(f"{why}\n    to {what}")

        await asyncio.gather(*(worker() for _ in range(at_once)))
        health = await client.get("/health")
        if health.status_code != 200:
            findings.wrong.append(f"/health: {health.status_code} {health.text}")
    return findings


def main() -> None:
    from machine import write
    from streams import Server

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--url", help="of a server that runs already")
    options = parser.parse_args()
    server = None
    if options.url is None:
        server = Server(["-m", "server", "demo", "--port", "0", "--max-model-len", "256", "--num-blocks", "2048"])
    begun = time.perf_counter()
    try:
        url = options.url or f"http://127.0.0.1:{server.port}"  # type: ignore[union-attr]
        findings = asyncio.run(attack(url, options.requests, options.seed))
        output = "".join(server.lines) if server is not None else ""
        code = server.stop() if server is not None else 0
    finally:
        if server is not None:
            server.stop()
    for wrong in findings.wrong[:20]:
        print(wrong)
    write(
        "fuzz",
        {
            "requests": findings.sent,
            "seed": options.seed,
            "seconds": round(time.perf_counter() - begun, 1),
            "answers": dict(findings.statuses.most_common()),
            "wrong": len(findings.wrong),
            "tracebacks_in_the_log": output.count("Traceback"),
            "exit_status": code,
        },
    )
    raise SystemExit(bool(findings.wrong or code or "Traceback" in output))


if __name__ == "__main__":
    main()
