"""The HTTP/1.1 connection: offers of other protocols, requests in a row, and a client that leaves them behind."""

from __future__ import annotations

import json
import socket
import time

import pytest

H2C = "connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n"
WEBSOCKET = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"


def connect(server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def post(body: dict, headers: str = "", *, chunked: bool = False) -> tuple[bytes, bytes]:
    """Head and body."""
    data = json.dumps(body).encode()
    length = "transfer-encoding: chunked" if chunked else f"content-length: {len(data)}"
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\n{headers}{length}\r\n\r\n".encode()
    return head, (b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if chunked else data)


def answers(connection: socket.socket, count: int) -> list[tuple[int, dict]]:
    """(status, body) of so many answers."""
    file = connection.makefile("rb")
    found = []
    for _ in range(count):
        status = int(file.readline().split()[1])
        length = 0
        while line := file.readline().strip():
            name, _, value = line.partition(b":")
            length = int(value) if name == b"content-length" else length
        found.append((status, json.loads(file.read(length))))
    return found


@pytest.mark.parametrize("offer", [H2C, WEBSOCKET], ids=["h2c", "websocket"])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("apart", [False, True])
def test_an_offer_of_another_protocol_loses_nothing(server, offer, chunked, apart):
    """As Java's client and curl --http2 send it. The body was lost once, and read as the next request."""
    head, body = post({"prompt": "the", "max_tokens": 2, "temperature": 0}, offer, chunked=chunked)
    plain, again = post({"prompt": "the", "max_tokens": 2, "temperature": 0})
    with connect(server) as connection:
        if apart:
            for piece in (head, body[:5], body[5:]):
                connection.sendall(piece)
                time.sleep(0.05)
        else:
            connection.sendall(head + body)
        connection.sendall(f"GET /health HTTP/1.1\r\nhost: x\r\n{offer}\r\n".encode() + plain + again)
        first, health, last = answers(connection, 3)
    assert first[0] == health[0] == last[0] == 200 and health[1] == {"status": "ok"}
    assert first[1]["choices"] == last[1]["choices"]
    assert "WebSocket library" not in server.output


def test_a_client_that_leaves_requests_in_a_row_leaves_the_first_too(server):
    running = {"prompt": "the", "max_tokens": 4000, "ignore_eos": True, "stream": True}
    before = server.metric("vllm:generation_tokens_total")
    with connect(server) as connection:
        connection.sendall(b"".join(post(running)) + b"".join(post({"prompt": "the", "max_tokens": 1})))
        assert connection.recv(15).startswith(b"HTTP/1.1 200")
    server.wait_idle(5)
    assert server.metric("vllm:generation_tokens_total") - before < 3000
