"""API keys from a file and the environment; only their digests are kept."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from compiler.errors import OptionError, storage_errors

KEYS_VARIABLE = "TENSORWRIGHT_API_KEYS"
"""Environment variable with API keys, separated by commas."""
_MIN_LENGTH = 16


def read_api_keys(path: Path | None) -> tuple[bytes, ...]:
    """Return the SHA-256 of the keys in a file (one per line, # begins a comment) and in TENSORWRIGHT_API_KEYS.

    Raises:
        StorageError: the file cannot be read.
        OptionError: it has no key, or a key is too short or contains white space.
    """
    keys = [each.strip() for each in os.environ.get(KEYS_VARIABLE, "").split(",") if each.strip()]
    if path is not None:
        with storage_errors(path, what="the file of API keys "):
            lines = path.read_text(encoding="utf-8").splitlines()
        file_keys = [line.partition("#")[0].strip() for line in lines]
        if not any(file_keys):
            raise OptionError(f"the file {path} holds no API key")
        keys += [each for each in file_keys if each]
    return tuple(map(key_digest, keys))


def key_digest(key: str) -> bytes:
    """Return the SHA-256 of a key. Raises OptionError if it is too short or contains white space."""
    if len(key) < _MIN_LENGTH or key.split() != [key]:
        raise OptionError(
            f"an API key must have {_MIN_LENGTH} characters at least, and no white space",
            "make one: python -c 'import secrets; print(secrets.token_urlsafe(32))'",
        )
    return hashlib.sha256(key.encode()).digest()
