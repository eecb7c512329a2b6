"""The engine process: `python -m core.engine.process`. It does nothing but steps.

Its standard input carries the options (msgpack, one frame, length first) and then stays open: when it closes, the parent
is gone, and so are we. Messages travel over zmq: one inbox for all clients, an outbox for each; the parent's addresses come
with the options, other clients name theirs when they join.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from typing import Any

import msgspec

IDLE_MS = 1000
"""With nothing to do for so long, what takes long once is made before a request wants it."""


def read_options() -> dict[str, Any]:
    """The first frame of standard input."""
    size = int.from_bytes(_read_exactly(8), "little")
    return dict(msgspec.msgpack.decode(_read_exactly(size)))


def _read_exactly(count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = os.read(0, count - len(data))
        if not piece:
            os._exit(0)
        data += piece
    return data


def _watch_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


def main() -> None:
    """Run the loop until the parent says so, or is gone."""
    import zmq

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    setup = read_options()
    threading.Thread(target=_watch_parent, daemon=True).start()
    context = zmq.Context()
    inbox = context.socket(zmq.PULL)
    inbox.set_hwm(0)
    inbox.bind(setup["inbox"])
    outboxes: dict[int, zmq.Socket[bytes]] = {}

    def join(client: int, address: str) -> None:
        if client in outboxes:  # it joins again, at another address
            outboxes[client].close(linger=0)
        outboxes[client] = outbox = context.socket(zmq.PUSH)
        outbox.set_hwm(0)
        outbox.connect(address)

    join(0, setup["outbox"])
    begun = time.perf_counter()
    from core.messages import EngineFailed, EngineStats, FromEngine, Join, Leave, encoder, to_engine_decoder

    def send(message: FromEngine, client: int) -> None:
        outboxes[client].send(encoder.encode(message), copy=False)

    loop = None
    try:
        from core.config import EngineConfig
        from core.engine.loop import EngineLoop
        from core.garbage import spare_what_lives

        config = EngineConfig.from_options(**setup["options"])
        imported = time.perf_counter() - begun
        past = msgspec.convert(setup["past"], EngineStats) if setup["past"] is not None else None
        loop = EngineLoop(config, send, past=past)
        loop.ready.timeline.insert(0, ("import", imported))
        spare_what_lives()
        send(loop.ready, 0)
        was_idle = False
        while loop.stop_at_s is None or (loop.has_work and time.monotonic() < loop.stop_at_s):
            # blocks when idle: no processor time is used
            while inbox.poll(0 if loop.has_work else IDLE_MS if loop.stop_at_s is None else 0):
                message = to_engine_decoder.decode(inbox.recv())
                loop.handle(message)
                if isinstance(message, Join) and loop.knows(message.client):
                    join(message.client, message.outbox)
                if isinstance(message, Leave) and message.client in outboxes:
                    outboxes.pop(message.client).close(linger=0)
            if loop.has_work:
                loop.step()
            elif not was_idle and loop.stop_at_s is None:
                was_idle = True
                loop.prepare()
    except Exception as error:
        from core.errors import BackplaneError

        if not isinstance(error, BackplaneError):  # ours say all there is to say
            with contextlib.suppress(OSError):  # a full disk must not keep it from those who wait
                traceback.print_exc()
        for client in outboxes:
            send(EngineFailed(error=str(error) or type(error).__name__, kind=type(error).__name__), client)
    finally:
        if loop is not None:
            loop.shutdown()
        for outbox in outboxes.values():
            outbox.close(linger=1000)
        inbox.close(linger=0)
        context.term()
        with contextlib.suppress(OSError, AttributeError):
            sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    main()
