"""Where things are kept that are built or fetched once: the user's cache folder."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from compiler.errors import StorageError

FOLDER_VARIABLE = "TENSORWRIGHT_CACHE"


def cache_folder() -> Path:
    """TENSORWRIGHT_CACHE, or `tensorwright` in the user's cache folder (XDG_CACHE_HOME, ~/.cache)."""
    if chosen := os.environ.get(FOLDER_VARIABLE):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tensorwright"


def conformance_file(target: str) -> Path:
    """Where the last result of a target's conformance suite is kept, for this version of the package."""
    version = importlib.metadata.version("tensorwright")
    return cache_folder() / "conformance" / version / f"{target.replace('/', '-')}.json"


def key_of(parts: Iterable[str | bytes]) -> str:
    """A short name for what was made out of these."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:20]


def cached(kind: str, key: str, make: Callable[[Path], None]) -> Path:
    """A folder of the cache that `make` filled, now or earlier; nobody ever sees it half full.

    Raises:
        StorageError: the cache can not be written.
    """
    folder = cache_folder() / kind / key
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f"{key}-", dir=folder.parent))
    except OSError as error:
        raise StorageError(f"{folder.parent} can not be written: {error}", f"set {FOLDER_VARIABLE}") from error
    try:
        make(fresh)
        try:
            fresh.rename(folder)
        except OSError:
            if not folder.is_dir():  # else somebody else was faster, with the same
                raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return folder
