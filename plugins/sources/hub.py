"""Checkpoints from the Hugging Face hub, or from its cache on disk."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from core.config import ModelConfig
from core.errors import ModelError

PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.model", "tokenizer*", "*.txt"]


@contextlib.contextmanager
def _bars_on_terminals_alone() -> Iterator[None]:
    """The client draws its progress bars into pipes and log files too."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    quiet = not sys.stderr.isatty() and not are_progress_bars_disabled()
    if quiet:
        disable_progress_bars()
    try:
        yield
    finally:
        if quiet:
            enable_progress_bars()


class HubSource:
    name = "hub"
    rank = 100

    def matches(self, model: str) -> bool:
        return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model) is not None

    def resolve(self, config: ModelConfig) -> Path:
        import huggingface_hub
        from huggingface_hub import errors

        where = f"model {config.model!r}" + (f" at revision {config.revision!r}" if config.revision else "")
        try:
            with _bars_on_terminals_alone():
                return Path(
                    huggingface_hub.snapshot_download(
                        config.model,
                        revision=config.revision,
                        token=config.hf_token,
                        cache_dir=config.download_dir,
                        local_files_only=config.offline,
                        allow_patterns=PATTERNS,
                    )
                )
        except errors.GatedRepoError as error:
            raise ModelError(
                f"{where} is gated: ask for access on its page, then pass hf_token or set HF_TOKEN"
            ) from error
        except errors.RevisionNotFoundError as error:
            raise ModelError(f"{where} does not exist; leave revision unset for the main branch") from error
        except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
            raise ModelError(
                f"{where} is no folder here and was not found on the hub (private ones need hf_token)"
            ) from error
        except errors.LocalEntryNotFoundError as error:
            raise ModelError(
                f"{where} is no folder here, is not in the cache, and the hub cannot be reached"
                f"{' (offline is set)' if config.offline else ''}; download it first, or give a folder"
            ) from error
        except Exception as error:  # not only OSError: the hub's client has changed its HTTP library, and errors, often
            number = getattr(error, "errno", None)
            if number == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(error):
                raise ModelError(
                    f"the disk is full while downloading {where}; free some space or set download_dir"
                ) from error
            if number in (errno.EFBIG, errno.EDQUOT):
                raise ModelError(
                    f"a limit on files or disk space ({os.strerror(number)}) stopped the download of {where}; "
                    "raise it, or set download_dir to a place without one"
                ) from error
            raise ModelError(
                f"{where} could not be downloaded ({type(error).__name__}: {error}); try again, or give a folder"
            ) from error
