"""Options of the server; those of the engine are in core/config.py."""

from __future__ import annotations

from dataclasses import dataclass

from core.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerConfig:
    """The HTTP side."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every interface."""
    port: int = 8000
    """Port to listen on."""
    uds: str | None = None
    """Unix socket to listen on, instead of host and port."""
    api_key: tuple[str, ...] = ()
    """Keys that clients must send as `Authorization: Bearer KEY`; none: open. Also BACKPLANE_API_KEY."""
    root_path: str = ""
    """Path under which a proxy serves this server."""
    allowed_origins: tuple[str, ...] = ()
    """Origins that browsers may call from (CORS)."""
    ssl_certfile: str | None = None
    """TLS certificate (PEM)."""
    ssl_keyfile: str | None = None
    """TLS key (PEM)."""
    max_body_bytes: int = 16 * 1024 * 1024
    """Largest request body."""
    drain_timeout_s: float = 30.0
    """After the first SIGTERM, running requests may take this long; the second stops at once."""
    stall_timeout_s: float = 60.0
    """/health says 503 when there is work and no step has finished for this long."""
    access_log: bool = False
    """Log every request."""
    log_level: str = "info"
    """debug, info, warning or error."""

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise ConfigError(f"port={self.port} must be from 0 to 65535")
        if bool(self.ssl_certfile) != bool(self.ssl_keyfile):
            raise ConfigError("ssl_certfile and ssl_keyfile go together; give both or none")
        if self.drain_timeout_s < 0:
            raise ConfigError("drain_timeout_s must not be negative")
