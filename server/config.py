"""Every option of the HTTP server, once. The command line makes its flags from this class, as from core/config.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from core.errors import ConfigError
from core.sampling_params import MAX_N


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise ConfigError(message)


def _check_rate(rate: str | None) -> None:
    if rate is None:
        return
    from limits import parse_many

    try:
        parse_many(rate)
    except ValueError:
        raise ConfigError(f"rate_limit={rate!r} is no rate; say e.g. 100/minute, or 10/second; 1000/hour") from None


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerConfig:
    """How the server listens, whom it lets in, and what it grants one request."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every interface."""
    port: int = 8000
    """TCP port; 0: one that is free."""
    uds: str | None = None
    """Path of a Unix socket to listen on instead of host and port."""
    api_server_count: int = 1
    """Server processes that share the engine and the port; limits of a key hold in each of them."""
    api_key: tuple[str, ...] = ()
    """Key that clients must send as `Authorization: Bearer KEY`; repeatable; also read from BACKPLANE_API_KEY, which may
    hold several with commas between."""
    api_key_file: str | None = None
    """File of such keys, one a line; empty lines and what follows a # are left out."""
    admin_api_key: str | None = None
    """Key of the administration routes; also read from BACKPLANE_ADMIN_API_KEY; unset: those routes are off when there
    are API keys."""
    rate_limit: str | None = None
    """Requests that one key (without keys: one address) may send, e.g. `100/minute` or `10/second; 1000/hour`."""
    max_concurrent_per_key: int | None = None
    """Requests of one key (without keys: of one address) that may run at once."""
    root_path: str = ""
    """Path prefix under which a proxy serves this server."""
    allowed_origins: tuple[str, ...] = ()
    """Origins that browsers may call from (CORS); `*` for all."""
    allow_credentials: bool = False
    """Let browsers send credentials from the allowed origins."""
    allowed_methods: tuple[str, ...] = ("*",)
    """Methods that browsers may use from the allowed origins."""
    allowed_headers: tuple[str, ...] = ("*",)
    """Headers that browsers may send from the allowed origins."""
    ssl_certfile: str | None = None
    """TLS certificate (PEM)."""
    ssl_keyfile: str | None = None
    """Key of the TLS certificate (PEM)."""
    ssl_ca_certs: str | None = None
    """Certificates (PEM) of which one must have signed the client's; a client without such a certificate is refused."""
    max_body_bytes: int = 32 * 1024 * 1024
    """Largest request body; a larger one is refused (HTTP 413)."""
    head_timeout_s: float = 20.0
    """Seconds within which a request's head must have arrived, or its connection closes."""
    body_timeout_s: float = 60.0
    """Seconds within which a request's body must have arrived."""
    playground: bool = True
    """Serve the playground page at `/`, and the engine's state to it."""
    openapi: bool = True
    """Serve the OpenAPI document at `/openapi.json` and a page of it at `/docs`."""
    access_log: bool = False
    """Log one line for every request."""
    log_level: str = "info"
    """debug, info, warning or error."""
    log_format: Literal["text", "json"] = "text"
    """Form of log lines."""
    otlp_traces_endpoint: str | None = None
    """Where to send a span for every prompt: OTLP over HTTP, e.g. http://127.0.0.1:4318/v1/traces; needs the extra `otel`."""
    drain_timeout_s: float = 30.0
    """Seconds that running requests get to finish after SIGTERM; a second signal stops at once."""
    keep_alive_timeout_s: int = 75
    """Seconds that an idle connection stays open."""
    restart_engine: bool = False
    """Start the engine process again when it dies; requests in flight end with an error, new ones get 503 meanwhile."""
    health_stall_s: float = 120.0
    """Seconds without a finished step, while requests run, after which /health turns to 503."""
    enable_auto_tool_choice: bool = True
    """Let the model decide to call tools (tool_choice `auto`) when a parser fits it."""
    response_role: str = "assistant"
    """Role of the answers of chat completions."""
    generation_config: Literal["auto", "none"] = "auto"
    """Take sampling defaults from the model's generation_config.json (`auto`) or not (`none`)."""
    max_n: int = MAX_N
    """Most answers (n, best_of) to one prompt."""
    max_prompts: int = 1024
    """Most prompts in one completions request."""

    def __post_init__(self) -> None:
        _require(0 <= self.port < 65536, f"port={self.port} must be from 0 to 65535")
        _require(1 <= self.api_server_count <= 256, f"api_server_count={self.api_server_count} must be from 1 to 256")
        _require(self.max_body_bytes > 0, f"max_body_bytes={self.max_body_bytes} must be positive")
        _require(self.drain_timeout_s >= 0, f"drain_timeout_s={self.drain_timeout_s} must be 0 or positive")
        _require(self.head_timeout_s > 0, f"head_timeout_s={self.head_timeout_s} must be positive")
        _require(1 <= self.max_n <= MAX_N, f"max_n={self.max_n} must be from 1 to {MAX_N}")
        _require(self.max_prompts >= 1, f"max_prompts={self.max_prompts} must be positive")
        _require(
            bool(self.ssl_certfile) == bool(self.ssl_keyfile), "ssl_certfile and ssl_keyfile must be given together"
        )
        _require(
            not self.otlp_traces_endpoint or self.otlp_traces_endpoint.startswith(("http://", "https://")),
            f"otlp_traces_endpoint={self.otlp_traces_endpoint!r} is no http or https address; OTLP goes over HTTP here, "
            "usually to http://HOST:4318/v1/traces",
        )
        _require(self.ssl_ca_certs is None or self.ssl_certfile is not None, "ssl_ca_certs needs ssl_certfile")
        _require(
            self.max_concurrent_per_key is None or self.max_concurrent_per_key >= 1,
            f"max_concurrent_per_key={self.max_concurrent_per_key} must be positive; or unset",
        )
        _check_rate(self.rate_limit)
        for name in ("ssl_certfile", "ssl_keyfile", "ssl_ca_certs", "api_key_file"):
            path = getattr(self, name)
            _require(path is None or Path(path).is_file(), f"{name}={path!r} is not a file")
        _require(all(k.strip() and k.isascii() for k in self.api_key), "api_key must be ASCII and not empty; or unset")
        _require(
            not self.root_path or self.root_path.startswith("/"), f"root_path={self.root_path!r} must start with /"
        )
