"""What crosses the boundary between a client (server or embedding) and the engine. Never pickle.

A sequence is named by its `handle`, an integer that the client draws; the bits above CLIENT_SHIFT are the client's number,
so that several clients share one engine and each gets what is its own. Client 0 is the process that started the engine.
Token arrays travel as the bytes of little-endian numpy arrays, so that a step of 1,000 sequences is one short frame.
"""

from __future__ import annotations

import msgspec

from core.sampling_params import SamplingParams

CLIENT_SHIFT = 40
"""A client draws 2**40 handles and call ids at most, 11 days at a million a second."""


class AddRequest(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """Start the sequences of one prompt: handles[0] is the parent of the others (n > 1)."""

    handles: list[int]
    request_id: str
    prompt: bytes
    """int32 token ids"""
    params: SamplingParams
    seeds: list[int]
    """One per handle, resolved by the client."""
    arrival_time_s: float
    """time.monotonic() of the client; one host, one clock"""
    priority: int = 0
    stream: bool = False
    cache_salt: str = ""
    bad_words_ids: list[list[int]] = []
    pooling: str | None = None
    """No output is generated: the prompt's hidden states become one vector, by this rule (core/pooling.py)."""


class Abort(msgspec.Struct, frozen=True, tag=True):
    """End these sequences; unknown handles are ignored."""

    handles: list[int]


class Join(msgspec.Struct, frozen=True, tag=True):
    """One more client. Its sequences and calls are answered at `outbox`, a zmq address where it listens already."""

    client: int
    """1 or more, never used before in this engine process"""
    outbox: str


class Leave(msgspec.Struct, frozen=True, tag=True):
    """The client is gone: its sequences end, and nothing is sent to it any more."""

    client: int


class Call(msgspec.Struct, frozen=True, tag=True):
    """A question or order outside the step: stats, inspect, reset_prefix_cache, ping ..."""

    call_id: int
    """Drawn as handles are"""
    method: str
    arguments: dict[str, object] = {}


class Shutdown(msgspec.Struct, frozen=True, tag=True):
    """Stop after `drain_s` seconds at most, during which running requests may finish."""

    drain_s: float = 0.0


ToEngine = AddRequest | Abort | Join | Leave | Call | Shutdown


class Logprobs(msgspec.Struct, frozen=True, array_like=True):
    """Log probabilities of one position: the chosen token first, then the likeliest ones."""

    token_ids: list[int]
    logprobs: list[float]
    ranks: list[int]
    """1 is the likeliest."""


class Finished(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One sequence has ended."""

    handle: int
    reason: str
    """stop, length, abort, error"""
    stop_reason: int | str | None = None
    error: str | None = None
    """Message of a RequestError that ended this sequence alone."""
    param: str | None = None
    token_ids: bytes | None = None
    """All output, int32, of a sequence that did not stream."""
    embedding: bytes | None = None
    """float32, as the model gave it, of a sequence with `pooling`."""
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    arrival_time_s: float = 0.0
    first_scheduled_time_s: float = 0.0
    first_token_time_s: float = 0.0
    finish_time_s: float = 0.0


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """Gauges and counters; counters only grow."""

    num_running: int = 0
    num_waiting: int = 0
    num_swapped: int = 0
    num_blocks: int = 0
    num_free_blocks: int = 0
    prefix_cache_queries: int = 0
    """Prompt tokens looked up."""
    prefix_cache_hits: int = 0
    """Prompt tokens found."""
    num_preemptions: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    num_steps: int = 0
    last_step_time_s: float = 0.0
    """time.monotonic() of the last finished step."""

    def after(self, past: EngineStats) -> EngineStats:
        """These, counted on from `past`: those of an engine that this one took the place of."""
        counted = {name: getattr(self, name) + getattr(past, name) for name in _COUNTERS}
        return msgspec.structs.replace(self, **counted)

    def at_rest(self) -> EngineStats:
        """The same counters with nothing running: what is left of an engine that is gone."""
        return msgspec.structs.replace(
            self, num_running=0, num_waiting=0, num_swapped=0, num_free_blocks=self.num_blocks
        )


_COUNTERS = (
    "prefix_cache_queries",
    "prefix_cache_hits",
    "num_preemptions",
    "prompt_tokens",
    "generation_tokens",
    "num_steps",
)


class RunningRow(msgspec.Struct, frozen=True, array_like=True):
    """How far one running sequence is, in tokens. Says nothing of what it is about."""

    row: int
    num_prompt: int
    num_computed: int
    """Tokens whose keys and values are in the cache; fewer than num_prompt while the prompt is computed."""
    num_tokens: int
    """Prompt and output so far."""
    max_tokens: int
    """Prompt and output at most."""
    num_blocks: int
    num_cached: int
    """Prompt tokens that the prefix cache served."""


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to the call `inspect(begin, count, num_rows)`: a look at the engine between two steps, for people."""

    begin: int
    """Block that `blocks` begins with."""
    blocks: bytes
    """A byte a block, as BlockPool.states has them: holders 0 to 2, plus 4 if the block can be found by its content."""
    rows: list[RunningRow]
    """The sequences admitted first, `num_rows` of them at most."""
    stats: EngineStats


class StepOutput(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """What one step gave to one client."""

    handles: bytes = b""
    """int64 [k]: sequences that stream and got a token"""
    token_ids: bytes = b""
    """int32 [k]"""
    finished: list[Finished] = []
    logprobs: dict[int, list[Logprobs]] = {}
    """handle -> positions of this step (all sequences that asked, streaming or not)"""
    num_cached: dict[int, int] = {}
    """handle -> prompt tokens found in the prefix cache, with the first token of a sequence that streams, unless 0"""
    prompt_logprobs: dict[int, list[Logprobs | None]] = {}
    stats: EngineStats | None = None
    time_s: float = 0.0


class CallResult(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The answer to a Call."""

    call_id: int
    value: object = None
    error: str | None = None


class EngineReady(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """First message of an engine process; what the client must know of the resolved engine."""

    max_model_len: int
    num_blocks: int
    block_size: int
    vocab_size: int
    eos_token_ids: list[int]
    choices: dict[str, str]
    """What "auto" became: option -> "value (reason)"."""
    timeline: list[tuple[str, float]]
    """Start-up phases and their seconds."""
    memory: dict[str, int]
    """Bytes by use."""
    model_path: str
    plugins: list[str]
    generates: bool = True
    """False: the model embeds alone."""


class EngineFailed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Last message of an engine process that cannot go on."""

    error: str
    kind: str
    """Class name in core.errors, or another exception's."""


FromEngine = StepOutput | CallResult | EngineReady | EngineFailed

to_engine_decoder = msgspec.msgpack.Decoder(ToEngine)
from_engine_decoder = msgspec.msgpack.Decoder(FromEngine)
encoder = msgspec.msgpack.Encoder()
