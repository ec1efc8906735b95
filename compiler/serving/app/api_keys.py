"""API keys out of a file and the environment; only digests of them are kept."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from compiler.errors import OptionError, storage_errors

KEYS_VARIABLE = "TENSORWRIGHT_API_KEYS"
"""Environment variable with API keys, separated by commas."""
_LEAST_LENGTH = 16


def read_api_keys(path: Path | None) -> tuple[bytes, ...]:
    """SHA-256 of the keys of a file (one a line, # begins a comment) and of TENSORWRIGHT_API_KEYS.

    Raises:
        StorageError: the file cannot be read.
        OptionError: it holds no key, or one is short or holds white space.
    """
    keys = [each.strip() for each in os.environ.get(KEYS_VARIABLE, "").split(",") if each.strip()]
    if path is not None:
        with storage_errors(path, what="the file of API keys "):
            lines = path.read_text(encoding="utf-8").splitlines()
        found = [line.partition("#")[0].strip() for line in lines]
        if not any(found):
            raise OptionError(f"the file {path} holds no API key")
        keys += [each for each in found if each]
    return tuple(map(key_digest, keys))


def key_digest(key: str) -> bytes:
    """SHA-256 of a key. Raises OptionError for one that is short, or holds white space."""
    if len(key) < _LEAST_LENGTH or key.split() != [key]:
        raise OptionError(
            f"an API key must have {_LEAST_LENGTH} characters at least, and no white space",
            "make one: python -c 'import secrets; print(secrets.token_urlsafe(32))'",
        )
    return hashlib.sha256(key.encode()).digest()
