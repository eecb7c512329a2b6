"""Who gets what of a step: reports are split by the client in the high bits of their handles. Knows no transport."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from core.messages import CLIENT_SHIFT, EngineStats, Finished, FromEngine, Logprobs, StepOutput

T = TypeVar("T")
NO_HANDLES = np.empty(0, np.int64)
NO_TOKENS = np.empty(0, np.int32)


def client_of(number: int) -> int:
    """The client that drew a handle or a call id."""
    return number >> CLIENT_SHIFT


class Router:
    """`send(message, client)` is called in the order in which things happened, for clients that have joined."""

    def __init__(self, send: Callable[[FromEngine, int], None]) -> None:
        self._send = send
        self._clients = [0]
        self._left: set[int] = set()

    def join(self, client: int) -> None:
        # what a client sent before it was killed may come after the word that it is gone
        if client not in self._left and client not in self._clients:
            self._clients.append(client)

    def leave(self, client: int) -> None:
        self._left.add(client)
        if client in self._clients:
            self._clients.remove(client)

    def knows(self, client: int) -> bool:
        """It has joined and not left."""
        return client in self._clients

    def answer(self, message: FromEngine, number: int) -> None:
        """To the client of a handle or call id, unless it has left."""
        client = client_of(number)
        if client in self._clients:
            self._send(message, client)

    def everyone(self, message: FromEngine) -> None:
        for client in self._clients:
            self._send(message, client)

    def step(
        self,
        time_s: float,
        handles: np.ndarray = NO_HANDLES,
        token_ids: np.ndarray = NO_TOKENS,
        finished: list[Finished] | None = None,
        logprobs: dict[int, list[Logprobs]] | None = None,
        prompt_logprobs: dict[int, list[Logprobs | None]] | None = None,
        stats: EngineStats | None = None,
        num_cached: dict[int, int] | None = None,
    ) -> None:
        """handles: int64 [k], token_ids: int32 [k]. `stats` goes to every client, the rest to its own."""
        if len(self._clients) == 1:
            output = StepOutput(
                handles=handles.astype(np.int64).tobytes(),
                token_ids=token_ids.astype(np.int32).tobytes(),
                finished=finished or [],
                logprobs=logprobs or {},
                prompt_logprobs=prompt_logprobs or {},
                num_cached=num_cached or {},
                stats=stats,
                time_s=time_s,
            )
            self._send(output, self._clients[0])
            return
        ended = defaultdict(list)
        for f in finished or ():
            ended[client_of(f.handle)].append(f)
        owners = handles >> CLIENT_SHIFT
        for client in self._clients:
            mine = owners == client
            output = StepOutput(
                handles=handles[mine].astype(np.int64).tobytes(),
                token_ids=token_ids[mine].astype(np.int32).tobytes(),
                finished=ended.get(client, []),
                logprobs=_of(client, logprobs),
                prompt_logprobs=_of(client, prompt_logprobs),
                num_cached=_of(client, num_cached),
                stats=stats,
                time_s=time_s,
            )
            if output.handles or output.finished or output.logprobs or output.prompt_logprobs or stats:
                self._send(output, client)


def _of(client: int, by_handle: dict[int, T] | None) -> dict[int, T]:
    return {h: value for h, value in by_handle.items() if client_of(h) == client} if by_handle else {}
