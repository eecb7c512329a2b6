"""Streams from within: a real engine, the app under uvicorn and clients over sockets, in this process, so that what takes the
short way, and the tasks of a request, can be counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest

from core.config import EngineConfig
from core.engine.async_engine import AsyncEngine
from server import launch
from server.app import create_app
from server.config import ServerConfig
from server.openai.chunks import Chunks
from server.streaming import DirectOutlet

# Litestar 2.25 announces another style of path parameters
pytestmark = pytest.mark.filterwarnings("ignore::litestar.exceptions.LitestarDeprecationWarning")

TEXT = {"prompt": "the", "max_tokens": 120, "ignore_eos": True, "temperature": 0}
CHAT = {"messages": [{"role": "user", "content": "the"}], "max_tokens": 120, "ignore_eos": True, "temperature": 0}


class App:
    def __init__(self, tiny_model: Path) -> None:
        options = EngineConfig.from_options(
            model=str(tiny_model), load_format="dummy", num_threads=1, num_blocks=2048, served_model_name=("tiny",)
        )
        self.engine = AsyncEngine(options)

    async def __aenter__(self) -> App:
        await self.engine.start()
        self._sock = launch.bind_all(ServerConfig(port=0))[0]
        self.address = self._sock.getsockname()
        self.asgi: Any = create_app(self.engine, ServerConfig())
        self._uvicorn = launch._Asgi(launch._uvicorn_config(self.asgi, ServerConfig()))
        self._uvicorn.handshake_timeout_s = 5
        self._running = asyncio.ensure_future(self._uvicorn.serve(sockets=[self._sock]))
        while not self._uvicorn.started:
            await asyncio.sleep(0.01)
        self.http = httpx.AsyncClient(base_url="http://{}:{}".format(*self.address), timeout=60)
        return self

    async def __aexit__(self, *_: Any) -> None:
        await self.http.aclose()
        self._uvicorn.should_exit = True
        await self._running
        await self.engine.shutdown()
        self._sock.close()

    async def whole(self, path: str, body: dict) -> list[dict]:
        answer = await self.http.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"]

    async def streamed(self, path: str, body: dict) -> list[dict]:
        answer = await self.http.post(path, json={**body, "stream": True, "stream_options": {"include_usage": True}})
        assert answer.status_code == 200 and answer.text.endswith("data: [DONE]\n\n")
        return [
            json.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if line.startswith("data: {")
        ]

    async def idle(self) -> None:
        async with asyncio.timeout(10):
            while self.engine.num_requests:
                await asyncio.sleep(0.01)


class Observing:
    """An observer of the engine that does nothing."""

    def request_started(self, request: Any) -> None: ...

    def request_finished(self, output: Any, finished: Any) -> None: ...

    def tokens(self, count: int, gap_s: float) -> None: ...

    def stats(self, stats: Any) -> None: ...


@pytest.fixture(scope="module")
def in_app(tiny_model):
    """in_app(test): run it with an app that the tests share."""
    with asyncio.Runner() as runner:
        app = App(tiny_model)
        runner.run(app.__aenter__())
        yield lambda test: runner.run(asyncio.wait_for(test(app), 60))
        runner.run(app.__aexit__())


@pytest.fixture
def puts(monkeypatch) -> list[int]:
    """Tokens of every output that took the short way."""
    seen: list[int] = []
    put = DirectOutlet.put

    def counting(self: DirectOutlet, output: Any) -> None:
        seen.append(sum(len(o.token_ids) for o in output.outputs))
        put(self, output)

    monkeypatch.setattr(DirectOutlet, "put", counting)
    return seen


async def read_later(app: App, path: str, body: dict, stop: asyncio.Event) -> bytes:
    """A client that reads nothing until `stop`, then all there is."""
    raw = json.dumps({**body, "stream": True}).encode()
    head = b"POST %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % (path.encode(), len(raw))
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    said = b""
    with contextlib.closing(sock):
        await loop.sock_connect(sock, app.address)
        await loop.sock_sendall(sock, head + raw)
        await stop.wait()
        while piece := await loop.sock_recv(sock, 1 << 16):
            said += piece
    return said


def texts(events: list[dict], n: int) -> list[str]:
    found = [""] * n
    for choice in (c for e in events for c in e["choices"]):
        found[choice["index"]] += choice["text"] if "text" in choice else choice["delta"].get("content") or ""
    return found


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"n": 3, "temperature": 1, "seed": 5},
        {"echo": True},
        {"logprobs": 2, "return_token_ids": True},
        {"stop": ["zzzz"]},
    ],
    ids=["plain", "n", "echo", "logprobs", "stop"],
)
def test_completions_say_the_same_by_the_short_way(in_app, puts, extra):
    async def test(app: App) -> None:
        body = TEXT | extra
        whole = await app.whole("/v1/completions", body)
        events = await app.streamed("/v1/completions", body)
        assert sum(puts) > 20, "the short way was not taken"
        assert texts(events, len(whole)) == [c["text"] for c in whole]
        ends = sorted((c["index"], c["finish_reason"]) for e in events for c in e["choices"] if c["finish_reason"])
        assert ends == [(i, "length") for i in range(len(whole))]
        assert events[-1]["usage"]["completion_tokens"] == 120 * len(whole)
        if "logprobs" in extra:
            parts = [c["logprobs"] for e in events for c in e["choices"]]
            for key, values in whole[0]["logprobs"].items():
                assert [v for p in parts for v in p[key]] == values, key
            assert [t for e in events for c in e["choices"] for t in c["token_ids"]] == whole[0]["token_ids"]

    in_app(test)


@pytest.mark.parametrize(
    "extra", [{}, {"n": 2, "seed": 5, "temperature": 1}, {"logprobs": True, "return_token_ids": True}]
)
def test_chats_say_the_same_by_the_short_way(in_app, puts, extra):
    async def test(app: App) -> None:
        body = CHAT | extra
        whole = await app.whole("/v1/chat/completions", body)
        events = await app.streamed("/v1/chat/completions", body)
        assert sum(puts) > 20, "the short way was not taken"
        assert texts(events, len(whole)) == [c["message"]["content"] for c in whole]
        roles = [c["index"] for e in events for c in e["choices"] if c["delta"].get("role")]
        assert sorted(roles) == list(range(len(whole))), "each answer begins once"
        assert events[-1]["usage"]["completion_tokens"] == 120 * len(whole)

    in_app(test)


@pytest.mark.parametrize("extra", [{}, {"n": 2, "temperature": 1, "seed": 5}, {"echo": True, "logprobs": 1}])
def test_several_prompts_say_the_same_by_the_short_way(in_app, puts, extra):
    async def test(app: App) -> None:
        body = TEXT | {"prompt": ["the", "engine", "serves the model"]} | extra
        whole = await app.whole("/v1/completions", body)
        events = await app.streamed("/v1/completions", body)
        assert sum(puts) > 20, "the short way was not taken"
        assert texts(events, len(whole)) == [c["text"] for c in whole]
        ends = sorted((c["index"], c["finish_reason"]) for e in events for c in e["choices"] if c["finish_reason"])
        assert ends == [(i, "length") for i in range(len(whole))]
        assert events[-1]["usage"]["completion_tokens"] == 120 * len(whole)

    in_app(test)


@pytest.mark.parametrize("extra", [{}, {"include": ["message.output_text.logprobs"], "top_logprobs": 2}])
def test_responses_say_the_same_by_the_short_way(in_app, puts, extra):
    async def test(app: App) -> None:
        body = {"model": "tiny", "input": "the", "max_output_tokens": 120, "ignore_eos": True, "temperature": 0} | extra
        whole = (await app.http.post("/v1/responses", json=body)).json()
        answer = await app.http.post("/v1/responses", json=body | {"stream": True})
        events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
        assert sum(puts) > 20, "the short way was not taken"
        assert [e["sequence_number"] for e in events] == list(range(len(events)))
        assert (events[0]["type"], events[-1]["type"]) == ("response.created", "response.incomplete")
        deltas = [e for e in events if e["type"] == "response.output_text.delta"]
        (part,) = whole["output"][0]["content"]
        assert "".join(e["delta"] for e in deltas) == part["text"]
        (said,) = events[-1]["response"]["output"][0]["content"]
        assert said == part and events[-1]["response"]["usage"]["output_tokens"] == 120
        assert len(part["logprobs"]) == (120 if extra else 0)

    in_app(test)


def test_messages_say_the_same_by_the_short_way(in_app, puts):
    async def test(app: App) -> None:
        body = {"model": "tiny", "messages": CHAT["messages"], "max_tokens": 120, "ignore_eos": True, "temperature": 0}
        whole = (await app.http.post("/v1/messages", json=body)).json()
        answer = await app.http.post("/v1/messages", json=body | {"stream": True})
        events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
        assert sum(puts) > 20, "the short way was not taken"
        assert [e["type"] for e in events[:3]] == ["message_start", "ping", "content_block_start"]
        assert [e["type"] for e in events[-3:]] == ["content_block_stop", "message_delta", "message_stop"]
        said = "".join(e["delta"]["text"] for e in events if e["type"] == "content_block_delta")
        assert said == whole["content"][0]["text"] and events[-2]["usage"]["output_tokens"] == 120

    in_app(test)


def test_who_does_not_read_closes_the_outlet_and_gets_all_later(in_app, puts):
    """Each event has 3 kB: some 100 fill what the connection may hold, and the rest merges until it is read."""

    async def test(app: App) -> None:
        body = TEXT | {"max_tokens": 1500, "logprobs": 20, "return_token_ids": True}
        whole = (await app.whole("/v1/completions", body))[0]
        awake = asyncio.Event()
        reader = asyncio.ensure_future(read_later(app, "/v1/completions", body, awake))
        while not app.engine.num_requests:
            await asyncio.sleep(0.01)
        await app.idle()  # the engine does not wait
        assert 5 < sum(puts) < 1200, "more went out than the connection may hold"
        before = len(puts)
        awake.set()
        said = await reader
        assert len(puts) == before, "what was left after the end is the task's"
        lines = [line for line in said.split(b"\n") if line.startswith(b"data: {")]
        choices = [c for line in lines for c in json.loads(line.removeprefix(b"data: "))["choices"]]
        assert [t for c in choices for t in c["token_ids"]] == whole["token_ids"]
        assert "".join(c["text"] for c in choices) == whole["text"]
        assert b"data: [DONE]" in said and len(lines) < 1200

    in_app(test)


def test_a_client_that_goes_ends_the_short_way(in_app, puts):
    async def test(app: App) -> None:
        body = TEXT | {"max_tokens": 3000, "stream": True}
        async with app.http.stream("POST", "/v1/completions", json=body) as answer:
            pieces = answer.aiter_raw()
            while len(puts) < 20:
                await anext(pieces)
        await app.idle()
        assert sum(puts) < 2900
        assert await app.whole("/v1/completions", TEXT)

    in_app(test)


def test_a_stream_is_one_task(in_app):
    """The server's own: none watches for a client that goes."""

    async def test(app: App) -> None:
        await app.idle()
        before = asyncio.all_tasks()
        body = TEXT | {"max_tokens": 2000, "stream": True}
        async with app.http.stream("POST", "/v1/completions", json=body) as answer:
            await anext(answer.aiter_raw())
            assert len(asyncio.all_tasks() - before) == 1
        await app.idle()

    in_app(test)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("filler", ["", "x" * 200_000], ids=["short", "long"])
def test_a_client_that_goes_before_its_answer_ends_the_request(in_app, stream, filler):
    """A body of more than 64 kB stops the reading of its connection for a while."""

    async def test(app: App) -> None:
        text = str(stream) + "0123456789" * 380  # several steps before the first token
        raw = json.dumps({"prompt": text, "max_tokens": 100, "ignore_eos": True, "stream": stream, "user": filler})
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(raw)}\r\n\r\n"
        seen = asyncio.Event()
        aborted: list[Any] = []

        class Seeing(Observing):
            def request_started(self, request: Any) -> None:
                seen.set()

            def request_finished(self, output: Any, finished: Any) -> None:
                aborted.append((output.outputs[0].finish_reason, len(output.outputs[0].token_ids)))

        seeing = Seeing()
        app.engine.observers.append(seeing)
        try:
            _, writer = await asyncio.open_connection(*app.address)
            writer.write(head.encode() + raw.encode())
            await asyncio.wait_for(seen.wait(), 10)
            writer.close()
            await app.idle()
        finally:
            app.engine.observers.remove(seeing)
        ((reason, num_tokens),) = aborted
        assert reason == "abort" and num_tokens < 100

    in_app(test)


@pytest.mark.parametrize("stream", [True, False])
def test_another_server_tells_of_a_client_that_goes(in_app, puts, stream):
    """The app under a server whose connections are not ours, which has ASGI alone."""

    async def test(app: App) -> None:
        body = json.dumps(TEXT | {"max_tokens": 3000, "stream": stream}).encode()
        given = [{"type": "http.request", "body": body, "more_body": False}]
        sent: list[dict] = []
        gone = asyncio.Event()

        async def receive() -> dict:
            if given:
                return given.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict) -> None:
            sent.append(message)
            if len(sent) == 10:
                gone.set()

        scope = {
            **{"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1"},
            **{"method": "POST", "scheme": "http", "path": "/v1/completions", "raw_path": b"/v1/completions"},
            **{"query_string": b"", "root_path": "", "client": ("x", 1), "server": ("x", 1)},
            "headers": [(b"content-length", b"%d" % len(body)), (b"content-type", b"application/json")],
        }
        running = asyncio.ensure_future(app.asgi(scope, receive, send))
        if not stream:
            while not app.engine.num_requests:
                await asyncio.sleep(0.01)
            gone.set()
        await asyncio.wait_for(running, 20)
        assert sent[0]["status"] == (200 if stream else 499)
        await app.idle()
        assert not puts, "the short way wants a connection of ours"
        assert sum(m.get("body", b"").count(b"data: ") for m in sent) < 2900

    in_app(test)


@pytest.mark.parametrize("prompt", ["the", ["the", "engine", "model"]], ids=["one", "several"])
def test_what_breaks_on_the_short_way_is_an_error_event(in_app, puts, monkeypatch, prompt):
    """Of several prompts the others end with it: nothing is said behind the error."""

    async def test(app: App) -> None:
        render = Chunks.render

        def breaking(self: Any, output: Any, number: int = 0) -> bytes:
            if len(puts) >= 10 and not number:
                raise RuntimeError("broken on purpose")
            return render(self, output, number)

        monkeypatch.setattr(Chunks, "render", breaking)
        body = TEXT | {"prompt": prompt, "max_tokens": 1000, "stream": True}
        answer = await app.http.post("/v1/completions", json=body)
        *_, last, done, end = answer.text.split("\n\n")
        assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"
        assert (done, end) == ("data: [DONE]", "") and 10 <= len(puts) < 20
        assert answer.text.count("[DONE]") == 1
        await app.idle()
        monkeypatch.undo()
        assert await app.whole("/v1/completions", TEXT)

    in_app(test)


class AbortAtOnce(Observing):
    """Aborts every request as it starts."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self.num_aborted = 0

    def request_started(self, request: Any) -> None:
        self.num_aborted += 1
        loop = asyncio.get_running_loop()
        # once the request is on its way
        loop.call_soon(lambda: loop.create_task(self._engine.abort(request.request_id)))


@pytest.mark.parametrize("path", ["completions", "chat/completions", "responses", "messages"])
def test_what_ends_before_its_first_event_has_a_status(in_app, path):
    async def test(app: App) -> None:
        text = path + "0123456789" * 380  # a token each: several steps before the first one of the answer
        messages = [{"role": "user", "content": text}]
        given = {"completions": {"prompt": text}, "responses": {"input": text}}.get(path, {"messages": messages})
        length = "max_output_tokens" if path == "responses" else "max_tokens"
        aborting = AbortAtOnce(app.engine)
        app.engine.observers.append(aborting)
        try:
            body = {"model": "tiny", length: 20, "ignore_eos": True, "stream": True} | given
            answer = await app.http.post(f"/v1/{path}", json=body)
        finally:
            app.engine.observers.remove(aborting)
        assert aborting.num_aborted == 1
        assert answer.status_code == 503, answer.text
        assert "aborted" in answer.json()["error"]["message"]

    in_app(test)
