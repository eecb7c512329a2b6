"""Spellings that vLLM has used on its command line, beside those of core/spellings.py, which Python's keywords share."""

from __future__ import annotations

from core import spellings
from core.spellings import Ignored

NAMES: dict[str, str] = {
    **spellings.NAMES,
    "uvicorn-log-level": "log-level",
    "enable-log-requests": "access-log",
    "log-requests": "access-log",
}
"""Other spelling -> option."""

SHORT: dict[str, str] = {
    "-tp": "tensor-parallel-size",
    "-pp": "pipeline-parallel-size",
    "-dp": "data-parallel-size",
    "-dcp": "decode-context-parallel-size",
    "-ep": "enable-expert-parallel",
    "-asc": "api-server-count",
    "-q": "quantization",
    "-O": "compilation-config",
    "-cc": "compilation-config",
    "-sc": "speculative-config",
    "-n": "nnodes",
}
"""With one dash; -O3 and -O.level=3 are -O with a value."""

FLAGS: dict[str, list[str]] = {
    "disable-async-output-proc": ["--no-async-scheduling"],
    "disable-fastapi-docs": ["--no-openapi"],
    "use-dummy-weights": ["--load-format", "dummy"],
}
"""A flag that says what an option with a value says here."""

VALUES: dict[str, dict[str, str]] = {
    **spellings.VALUES,
    "generation-config": {"vllm": "none"},
    "log-level": {"critical": "error", "trace": "debug"},
}
"""Option -> other spellings of its values."""

JSON_PARTS: dict[str, tuple[str, str]] = {
    "rope-scaling": ("hf-overrides", "rope_scaling"),
    "rope-theta": ("hf-overrides", "rope_theta"),
}
"""An option whose value is one key of another, a JSON object."""

IGNORED: dict[str, Ignored] = {
    **spellings.IGNORED,
    "chat-template-content-format": Ignored("content is given to the template as it takes it"),
    "disable-access-log-for-endpoints": Ignored("requests are not logged unless --access-log is given"),
    "disable-frontend-multiprocessing": Ignored("the engine always has a process of its own", False),
    "disable-uvicorn-access-log": Ignored("requests are not logged unless --access-log is given", False),
    "enable-log-deltas": Ignored("answers are not logged", False),
    "enable-log-outputs": Ignored("answers are not logged", False),
    "enable-metrics": Ignored("metrics are always at /metrics", False),
    "enable-prompt-tokens-details": Ignored("usage always has them", False),
    "enable-reasoning": Ignored("reasoning is parsed where the model's chat template has it", False),
    "enable-request-id-headers": Ignored("every answer has X-Request-Id", False),
    "enable-server-load-tracking": Ignored("the load is at /metrics", False),
    "enable-ssl-refresh": Ignored("certificates are read when the server starts", False),
    "h11-max-header-count": Ignored("the reader of requests has bounds of its own"),
    "h11-max-incomplete-event-size": Ignored("the reader of requests has bounds of its own"),
    "log-config-file": Ignored("--log-level and --log-format say how lines look"),
    "log-error-stack": Ignored("an unexpected error is always logged with its stack", False),
    "max-log-len": Ignored("prompts are not logged"),
    "ssl-cert-reqs": Ignored("with --ssl-ca-certs a client's certificate is required"),
}
"""Accepted with a warning: option -> why nothing changes."""

ONLY: dict[str, tuple[str, str]] = {
    **spellings.ONLY,
}
"""Options with one value so far: option -> (value, why)."""

REFUSED: dict[str, str] = {
    **spellings.REFUSED,
    "enable-force-include-usage": 'ask for it: "stream_options": {"include_usage": true}',
    "headless": "one host serves a model",
    "lora-modules": "LoRA adapters are not there yet",
    "middleware": "register routes in a plugin instead (docs/plugins.md)",
    "prompt-adapters": "prompt adapters are not there yet",
    "reasoning-parser-plugin": "install the parser as a package: engine plugins new NAME --kind reasoning_parser",
    "return-tokens-as-token-ids": 'ask for it in a request: "return_token_ids": true',
    "ssl-ciphers": "Python's choice of ciphers is used; put a proxy before the server for another",
    "tool-parser-plugin": "install the parser as a package: engine plugins new NAME --kind tool_parser",
    "tool-server": "tools run with the client",
    "trust-request-chat-template": "a template from a request is code from a stranger; set --chat-template",
}
"""Would change answers, or who may do what, and is not there: option -> why, or what to do instead."""
