"""The streaming chat handler as it is usually written on FastAPI and pydantic, over our own AsyncEngine.

python benchmarks/fastapi_app.py: serves like `python -m server demo`, in the same layout: this process, and an engine process.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Literal

import uvicorn
import uvloop
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from core import AsyncEngine, SamplingParams
from core.config import EngineConfig


class Message(BaseModel):
    model_config = ConfigDict(extra="allow")
    role: str
    content: str


class StreamOptions(BaseModel):
    include_usage: bool = False


class ChatRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")
    messages: list[Message]
    model: str | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    n: int = Field(1, ge=1)
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    ignore_eos: bool = False


class Delta(BaseModel):
    role: str | None = None
    content: str | None = None


class Choice(BaseModel):
    index: int
    delta: Delta
    logprobs: dict[str, Any] | None = None
    finish_reason: Literal["stop", "length"] | None = None
    stop_reason: int | str | None = None


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Chunk(BaseModel):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage | None = None


def create_app(engine: AsyncEngine) -> FastAPI:
    app = FastAPI()

    async def events(body: ChatRequest, prompt: list[int], params: SamplingParams) -> AsyncIterator[str]:
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": body.model or "demo"}
        num_output = 0
        first = Chunk(**head, choices=[Choice(index=0, delta=Delta(role="assistant", content=""))])
        yield f"data: {first.model_dump_json(exclude_unset=True)}\n\n"
        async with aclosing(engine.generate(prompt, params, output_kind="delta")) as source:  # type: ignore[type-var]
            async for output in source:
                for new in output.outputs:
                    num_output += len(new.token_ids)
                    choice = Choice(index=new.index, delta=Delta(content=new.text), finish_reason=new.finish_reason)
                    chunk = Chunk(**head, choices=[choice])
                    yield f"data: {chunk.model_dump_json(exclude_unset=True)}\n\n"
        if body.stream_options and body.stream_options.include_usage:
            usage = Usage(
                prompt_tokens=len(prompt), completion_tokens=num_output, total_tokens=len(prompt) + num_output
            )
            yield f"data: {Chunk(**head, choices=[], usage=usage).model_dump_json(exclude_unset=True)}\n\n"
        yield "data: [DONE]\n\n"

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Any:
        if not body.stream:
            return JSONResponse({"error": {"message": "this handler streams"}}, status_code=400)
        text = engine.render_chat([m.model_dump() for m in body.messages], add_generation_prompt=True)
        prompt = engine.tokenizer.encode(text, False)
        wishes = {k: v for k in ("max_tokens", "temperature", "top_p", "seed") if (v := getattr(body, k)) is not None}
        params = SamplingParams(n=body.n, ignore_eos=body.ignore_eos, **wishes)
        return StreamingResponse(events(body, prompt, params), media_type="text/event-stream")

    return app


async def main() -> None:
    options: dict[str, Any] = {"model": "demo", "max_num_seqs": 1024}
    if "noop" in sys.argv:
        options["executor"] = "noop"
    engine = AsyncEngine(EngineConfig.from_options(**options))
    await engine.start()
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(create_app(engine), log_config=None, access_log=False, ws="none", backlog=4096)
    )
    serving = asyncio.ensure_future(server.serve(sockets=[sock]))
    while not server.started:
        await asyncio.sleep(0.01)
    print(f"serving demo on http://127.0.0.1:{sock.getsockname()[1]}", flush=True)
    await serving
    await engine.shutdown()


if __name__ == "__main__":
    uvloop.run(main())
