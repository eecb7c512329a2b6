"""Requests that wait, in the order of the policy."""

from __future__ import annotations

import heapq
from typing import Literal

from core.request import Request, RequestState


class WaitingQueue:
    """A heap with lazy removal: a request that was aborted while waiting is skipped when its turn comes."""

    def __init__(self, policy: Literal["fcfs", "priority"]) -> None:
        self._by_priority = policy == "priority"
        self._heap: list[tuple[int, float, int, Request]] = []
        self._counter = 0
        self._front = 0
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def push(self, request: Request) -> None:
        self._counter += 1
        self._push(request, self._counter)

    def push_front(self, request: Request) -> None:
        """For preempted requests and forks: before everyone of the same priority."""
        self._front -= 1
        self._push(request, self._front)

    def _push(self, request: Request, order: int) -> None:
        heapq.heappush(
            self._heap, (request.priority if self._by_priority else 0, float(order), request.handle, request)
        )
        self._size += 1

    def peek(self) -> Request | None:
        while self._heap and self._heap[0][3].state is RequestState.FINISHED:
            heapq.heappop(self._heap)
        return self._heap[0][3] if self._heap else None

    def pop(self) -> Request:
        request = self.peek()
        assert request is not None
        heapq.heappop(self._heap)
        self._size -= 1
        return request

    def discard(self, request: Request) -> None:
        """`request` is FINISHED now and will be skipped."""
        self._size -= 1
