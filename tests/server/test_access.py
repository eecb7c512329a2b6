"""Keys, limits of keys, CORS, TLS, root path, Unix socket, request ids, the OpenAPI document: against real servers."""

from __future__ import annotations

import ssl
import subprocess
import sys
import threading
import time

import httpx
import jsonschema
import pytest

BODY = {"prompt": "the", "max_tokens": 2}
LONG = {"prompt": "the", "max_tokens": 3000, "ignore_eos": True, "stream": True}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_keys_cors_and_root_path(start_server, tmp_path):
    file = tmp_path / "keys"
    file.write_text("# ours\nfour  # the team's\n\nfive\n")
    server = start_server(
        server={
            "api_key": ("one",),
            "api_key_file": str(file),
            "admin_api_key": "chief",
            "allowed_origins": ("https://app.example",),
            "allowed_methods": ("GET", "POST"),
            "allowed_headers": ("authorization", "content-type"),
            "root_path": "/engine",
        },
        env={"BACKPLANE_API_KEY": "two, three"},
    )
    url = server.url
    for key in ("one", "two", "three", "four", "five"):
        assert httpx.get(f"{url}/v1/models", headers=bearer(key)).status_code == 200, key
        assert httpx.get(f"{url}/v1/models", headers={"x-api-key": key}).status_code == 200, key
    for key in ("# ours", "two, three", "chief", "One", "one1", "é"):
        answer = httpx.get(f"{url}/v1/models", headers={"Authorization": f"Bearer {key}".encode()})
        assert answer.status_code == 401, key

    # administration
    for path, method in (("/server_info", "GET"), ("/reset_prefix_cache", "POST")):
        assert httpx.request(method, url + path).status_code == 401
        refused = httpx.request(method, url + path, headers=bearer("one"))
        assert refused.status_code == 403 and refused.json()["error"]["code"] == "not_admin"
        assert httpx.request(method, url + path, headers=bearer("chief")).status_code == 200
    info = httpx.get(f"{url}/server_info", headers=bearer("chief")).json()
    assert info["models"] == ["tiny", "also-tiny"] and any(p["name"] == "hermes" for p in info["plugins"])
    assert "chief" not in httpx.get(f"{url}/server_info", headers=bearer("chief")).text

    # CORS: a preflight, an answer, and an error that the page must be able to read
    ask = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    preflight = httpx.options(f"{url}/v1/completions", headers=ask)
    assert preflight.headers["access-control-allow-origin"] == "https://app.example"
    assert "POST" in preflight.headers["access-control-allow-methods"]
    for headers, status in ((bearer("one"), 200), ({}, 401)):
        answer = httpx.get(f"{url}/v1/models", headers={**headers, "Origin": "https://app.example"})
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
    stranger = httpx.get(f"{url}/v1/models", headers={**bearer("one"), "Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in stranger.headers

    # a proxy may leave the prefix in place or take it away
    for prefix in ("", "/engine"):
        assert httpx.get(f"{url}{prefix}/v1/models", headers=bearer("one")).status_code == 200, prefix
        assert httpx.post(f"{url}{prefix}/v1/completions", headers=bearer("one"), json=BODY).status_code == 200
    assert httpx.get(f"{url}/other/v1/models", headers=bearer("one")).status_code == 404

    # the id of a request stands in whatever answers it
    for path, status in (("/v1/models", 401), ("/nowhere", 404), ("/health", 200), ("/v1/completions", 405)):
        answer = httpx.get(url + path, headers={"X-Request-Id": "abc-1"})
        assert (answer.status_code, answer.headers["x-request-id"]) == (status, "abc-1")


def test_an_empty_key_file_does_not_open_the_server(tiny_model, tmp_path):
    file = tmp_path / "keys"
    file.write_text("# nothing yet\n")
    command = [sys.executable, "-m", "server", str(tiny_model), "--load-format", "dummy", "--port", "0"]
    ended = subprocess.run([*command, "--api-key-file", str(file)], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1 and "holds no key" in ended.stderr


def test_limits_of_a_key_over_tls(start_server, tmp_path):
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    cert = authority.issue_cert("127.0.0.1")
    cert.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    for i, blob in enumerate(cert.cert_chain_pems):
        blob.write_to_path(str(tmp_path / "cert.pem"), append=i > 0)
    server = start_server(
        server={
            "ssl_certfile": str(tmp_path / "cert.pem"),
            "ssl_keyfile": str(tmp_path / "key.pem"),
            "api_key": ("a", "b", "c"),
            "rate_limit": "4/minute; 1000/hour",
            "max_concurrent_per_key": 1,
        }
    )
    assert server.url.startswith("https://")
    with pytest.raises(httpx.ConnectError, match="certificate"):
        httpx.get(f"{server.url}/health")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with httpx.Client(base_url=server.url, verify=context, timeout=60) as http:
        # four in a minute, each key for itself; what is no work is free
        codes = [http.post("/v1/completions", json=BODY, headers=bearer("a")).status_code for _ in range(6)]
        assert codes == [200] * 4 + [429] * 2
        refused = http.post("/v1/completions", json=BODY, headers=bearer("a"))
        assert refused.json()["error"]["code"] == "rate_limit_exceeded" and "4 per 1 minute" in refused.text
        assert 1 <= int(refused.headers["retry-after"]) <= 60 and refused.headers["x-request-id"]
        assert http.get("/v1/models", headers=bearer("a")).status_code == 200
        assert http.post("/v1/completions", json=BODY, headers=bearer("b")).status_code == 200

        # one at a time: a stream that runs blocks its key, and frees it when its client goes
        with http.stream("POST", "/v1/completions", json=LONG, headers=bearer("c")) as stream:
            lines = stream.iter_lines()  # kept, for it closes the connection when it goes
            next(lines)
            refused = http.post("/v1/completions", json=BODY, headers=bearer("c"))
            assert refused.status_code == 429 and refused.json()["error"]["code"] == "concurrency_limit_exceeded"
            assert refused.headers["retry-after"] == "1"
            assert http.post("/v1/completions", json=BODY, headers=bearer("b")).status_code == 200
        deadline = time.monotonic() + 5
        while (again := http.post("/v1/completions", json=BODY, headers=bearer("c"))).status_code == 429:
            assert again.json()["error"]["code"] == "concurrency_limit_exceeded" and time.monotonic() < deadline
            time.sleep(0.05)
        assert again.status_code == 200


def test_a_full_queue_says_when_to_come_back(narrow_server):
    results = []

    def ask():
        body = {"prompt": "the", "max_tokens": 200, "ignore_eos": True}
        body["messages"] = MESSAGES
        results.append(httpx.post(f"{narrow_server.url}/v1/chat/completions", json=body, timeout=60))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    refused = [r for r in results if r.status_code == 429]
    assert refused and {r.status_code for r in results} == {200, 429}
    for r in refused:
        assert int(r.headers["retry-after"]) >= 1 and r.json()["error"]["code"] == "queue_full"


MESSAGES = [{"role": "user", "content": "the"}]


def test_a_unix_socket(start_server, tmp_path):
    path = tmp_path / "engine.sock"
    server = start_server(server={"uds": str(path)})
    assert server.url == f"unix:{path}"
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://engine") as http:
        assert http.get("/health").status_code == 200
        assert http.post("/v1/completions", json=BODY).json()["usage"]["completion_tokens"] <= 2
    server.stop()
    assert server.process.returncode == 0 and not path.exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--rate-limit", "often"], "rate_limit='often' is no rate"),
        (["--max-concurrent-per-key", "0"], "max_concurrent_per_key=0 must be positive"),
        (["--ssl-certfile", "x"], "must be given together"),
        (["--api-key-file", "/nowhere"], "api_key_file='/nowhere' is not a file"),
        (["--root-path", "x"], "must start with /"),
    ],
)
def test_options_that_cannot_be(options, words):
    ended = subprocess.run([sys.executable, "-m", "server", *options], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1 and words in ended.stderr and "Traceback" not in ended.stderr


# ---- the OpenAPI document


@pytest.fixture(scope="module")
def document(server):
    return httpx.get(f"{server.url}/openapi.json").json()


def test_the_document_has_every_route(server, document):
    assert document["openapi"].startswith("3.1") and document["info"]["title"] == "Backplane"
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/tokenize"):
        operation = document["paths"][path]["post"]
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        name = schema["$ref"].removeprefix("#/components/schemas/")
        assert document["components"]["schemas"][name]["properties"], path
        assert operation["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
        assert "4XX" in operation["responses"] and (operation["summary"] or operation["description"])
    assert {"/v1/models", "/health", "/metrics", "/server_info"} <= set(document["paths"])
    assert httpx.get(f"{server.url}/docs/openapi.json").json() == document
    page = httpx.get(f"{server.url}/docs")
    assert page.status_code == 200 and "swagger" in page.text.lower()


def test_no_reference_of_the_document_dangles(document):
    def references(value):
        if isinstance(value, dict):
            if "$ref" in value:
                yield value["$ref"]
            for v in value.values():
                yield from references(v)
        elif isinstance(value, list):
            for v in value:
                yield from references(v)

    found = set(references(document))
    assert len(found) > 15
    for reference in found:
        at = document
        for step in reference.removeprefix("#/").split("/"):
            at = at[step]


CALLS = [
    ("post", "/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 3, "logprobs": True, "top_logprobs": 1}),
    ("post", "/v1/completions", {"prompt": ["the", "engine"], "max_tokens": 3, "logprobs": 1, "echo": True}),
    ("post", "/v1/responses", {"input": "the", "max_output_tokens": 3}),
    ("post", "/v1/responses/input_tokens", {"input": "the"}),
    ("post", "/v1/messages", {"model": "tiny", "max_tokens": 3, "messages": MESSAGES}),
    ("post", "/v1/messages/count_tokens", {"model": "tiny", "messages": MESSAGES}),
    ("post", "/tokenize", {"prompt": "the", "return_token_strs": True}),
    ("post", "/detokenize", {"tokens": [10, 11]}),
    ("get", "/v1/models", None),
]


@pytest.mark.parametrize(("method", "path", "body"), CALLS)
def test_bodies_and_answers_fit_the_document(server, document, method, path, body):
    operation = document["paths"][path][method]

    def check(value, schema):
        jsonschema.validate(value, {**schema, "components": document["components"]})

    if body is not None:
        check(body, operation["requestBody"]["content"]["application/json"]["schema"])
    answer = httpx.request(method, server.url + path, json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    check(answer.json(), operation["responses"]["200"]["content"]["application/json"]["schema"])
    if body is not None:
        error = httpx.request(method, server.url + path, json={**body, "model": 5})
        assert error.status_code == 400
        if "messages" not in path.split("/"):
            check(error.json(), operation["responses"]["4XX"]["content"]["application/json"]["schema"])
