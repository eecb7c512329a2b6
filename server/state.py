"""What the routes share: the engine, the options, who is in flight."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from litestar import Request

from core.errors import RequestError
from server.config import ServerConfig
from server.errors import ApiError, from_decode_error
from server.health import Progress
from server.metrics import Metrics
from server.tally import Tally
from server.tracing import Tracing

if TYPE_CHECKING:
    from core.engine.remote import RemoteEngine
    from core.messages import EngineStats

log = logging.getLogger("backplane.server")
T = TypeVar("T")
HttpRequest = Request[Any, Any, Any]

LONG_TEXT = 4096
"""Characters from which rendering and tokenizing go to a thread, so that streams do not wait for them."""
CHARS_A_TOKEN = 8
"""Most text has fewer a token. Of a prompt with more characters than this for every token that the model takes, so many
are looked at first: megabytes are not tokenized only to be refused."""
_DEFAULT_NAMES = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


class ServerState:
    """One app's. Lives as long as the app."""

    def __init__(self, engine: RemoteEngine, options: ServerConfig, tally: Tally | None = None) -> None:
        """`tally`: what is counted together with other server processes."""
        self.engine = engine
        self.options = options
        model = engine.config.model
        self.served_names: tuple[str, ...] = tuple(model.served_model_name) or (model.model,)
        self.created_s = int(time.time())
        self.draining = False
        self.accepted = 0
        """Requests for work that have not been answered to the end, from their first byte on."""
        self.in_flight = 0
        """Those of them that the engine works on."""
        self.metrics = Metrics(self.served_names[0], lambda: self.engine.last_stats, lambda: self.engine.errored, tally)
        self.progress = Progress(options.health_stall_s)
        self.engine.observers.extend([self.metrics, self.progress])
        if options.otlp_traces_endpoint:
            self.engine.observers.append(Tracing(options.otlp_traces_endpoint, self.model_name))
        self.defaults = sampling_defaults(engine.ready.model_path) if options.generation_config == "auto" else {}
        self._token_bytes: list[bytes] | None = None
        self._num_requests = itertools.count()

    @property
    def model_name(self) -> str:
        return self.served_names[0]

    def check_model(self, name: str | None) -> str:
        """The name to answer with. 404 for a model that is not served."""
        if name is None or name == "":
            return self.model_name
        if name not in self.served_names:
            served = ", ".join(repr(n) for n in self.served_names)
            raise ApiError(
                f"the model {name!r} does not exist; served here: {served}",
                status=404,
                param="model",
                code="model_not_found",
                type="invalid_request_error",
            )
        return name

    def check_open(self) -> None:
        """503 when no new work is taken."""
        if self.engine.errored:
            raise ApiError(f"the engine is dead: {self.engine.errored}", status=503, code="engine_dead")
        if self.draining:
            raise ApiError(
                "the server is shutting down",
                status=503,
                code="shutting_down",
                headers={"Retry-After": "5", "Connection": "close"},
            )

    @contextmanager
    def working(self) -> Any:
        """Counts a request as in flight."""
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    def engine_id(self, id: str) -> str:
        """A name for the engine. Clients may send one id twice, the engine takes it once."""
        return f"{id}#{next(self._num_requests)}"

    async def fresh_stats(self, timeout_s: float = 0.5) -> EngineStats | None:
        """Stats asked for now, or the last known ones when the engine is busy in a step."""
        try:
            return await asyncio.wait_for(self.engine.stats(), timeout_s)
        except Exception:
            return self.engine.last_stats

    def token_bytes(self, token_id: int, text: str) -> list[int]:
        """A token's own bytes; `text` alone cannot say them when a character is split over tokens."""
        if self._token_bytes is None:
            tokenizer = self.engine.tokenizer
            self._token_bytes = list(tokenizer.token_bytes()) if tokenizer is not None else []
        known = self._token_bytes[token_id] if 0 <= token_id < len(self._token_bytes) else b""
        return list(known or text.encode("utf-8", "replace"))

    async def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return (await self.encode_all([text], add_special_tokens=add_special_tokens))[0]

    async def encode_all(self, texts: list[str], *, add_special_tokens: bool) -> list[list[int]]:
        tokenizer = self.engine.tokenizer
        if tokenizer is None:
            raise ApiError("no tokenizer is loaded (skip_tokenizer_init); send token ids", param="prompt")
        if sum(map(len, texts)) < LONG_TEXT:
            return list(tokenizer.encode_batch(texts, add_special_tokens))
        return list(await asyncio.to_thread(tokenizer.encode_batch, texts, add_special_tokens))

    async def encode_prompts(self, texts: list[str], *, add_special_tokens: bool) -> list[list[int]]:
        """`encode_all`, for prompts. Raises RequestError for one that is far too long, from a look at its beginning."""
        length = self.engine.ready.max_model_len
        for text in texts:
            if len(text) > CHARS_A_TOKEN * length:
                count = len(await self.encode(text[: CHARS_A_TOKEN * length], add_special_tokens=add_special_tokens))
                if count > length:
                    raise RequestError(
                        f"the prompt has more than {count} tokens, and the model takes {length} with at least one for "
                        "the answer; shorten the prompt or raise max_model_len",
                        param="prompt",
                    )
        return await self.encode_all(texts, add_special_tokens=add_special_tokens)

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str:
        tokenizer = self.engine.tokenizer
        if tokenizer is None:
            raise ApiError("no tokenizer is loaded (skip_tokenizer_init)")
        return str(tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens))


def sampling_defaults(model_path: str) -> dict[str, Any]:
    """What the model's generation_config.json says of sampling. A file that cannot be read says nothing."""
    try:
        values = json.loads((Path(model_path) / "generation_config.json").read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(values, dict):
        return {}
    found = {k: values[k] for k in _DEFAULT_NAMES if isinstance(values.get(k), int | float)}
    if values.get("do_sample") is False:
        found["temperature"] = 0.0
    # transformers writes these for "off"
    if found.get("top_k") in (0, -1):
        found.pop("top_k")
    if found.get("top_p") == 0:
        found.pop("top_p")
    return found


def request_id(request: HttpRequest) -> str:
    """The client's X-Request-Id, or one drawn once for this request."""
    scope: Any = request.scope
    known = scope.get("backplane_request_id")
    if known is None:
        given = request.headers.get("x-request-id", "")
        known = given if 0 < len(given) <= 128 and given.isascii() and given.isprintable() else uuid.uuid4().hex
        scope["backplane_request_id"] = known
    return str(known)


async def read_body(request: HttpRequest, decoder: msgspec.json.Decoder[T], timeout_s: float) -> tuple[T, bytes]:
    """The decoded body and its bytes."""
    try:
        async with asyncio.timeout(timeout_s):
            body = await request.body()
    except TimeoutError:
        raise ApiError(f"the body did not arrive within {timeout_s:g} s", status=408, code="body_timeout") from None
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise ApiError(
            f"content-encoding {encoding!r} is not supported; send the body as it is",
            status=415,
            code="unsupported_encoding",
        )
    if not body.strip():
        raise ApiError("the body is empty; send a JSON object", code="invalid_json")
    try:
        body.decode()  # the decoder does not look into keys that it does not know
        return decoder.decode(body), body
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise from_decode_error(error) from None


async def merge(sources: list[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T], None]:
    """Items of all generators as they come, with the generator's number. The first exception ends all.

    A generator goes on when its item has gone its way: when the caller asks for what follows.
    """
    if len(sources) == 1:
        try:
            async for item in sources[0]:
                yield 0, item
        finally:
            await sources[0].aclose()
        return
    queue: asyncio.Queue[tuple[int, T | None, BaseException | None]] = asyncio.Queue()
    taken = [asyncio.Event() for _ in sources]

    async def pump(number: int, source: AsyncGenerator[T, None]) -> None:
        error: BaseException | None = None
        try:
            async for item in source:
                taken[number].clear()
                queue.put_nowait((number, item, None))
                await taken[number].wait()
        except asyncio.CancelledError:
            raise
        except BaseException as e:
            error = e
        finally:
            await source.aclose()
        queue.put_nowait((number, None, error))

    tasks = [asyncio.create_task(pump(i, s)) for i, s in enumerate(sources)]
    try:
        left = len(tasks)
        while left:
            number, item, error = await queue.get()  # type: ignore[assignment]
            if error is not None:
                raise error
            if item is None:
                left -= 1
            else:
                yield number, item
                taken[number].set()
    finally:
        for t in tasks:
            t.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
