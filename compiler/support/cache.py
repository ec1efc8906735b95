"""The user's cache folder, for files that are built or downloaded once."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from compiler.errors import StorageError

FOLDER_VARIABLE = "TENSORWRIGHT_CACHE"
_RANDOM_LETTERS = 8  # number of letters that tempfile appends to a prefix


def cache_folder() -> Path:
    """TENSORWRIGHT_CACHE, or `tensorwright` in the user's cache folder (XDG_CACHE_HOME, ~/.cache)."""
    if chosen := os.environ.get(FOLDER_VARIABLE):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tensorwright"


def conformance_file(target: str) -> Path:
    """Path of the most recent conformance result of a target for this version of the package."""
    import importlib.metadata  # takes longer to import than the rest

    version = importlib.metadata.version("tensorwright")
    return cache_folder() / "conformance" / version / f"{target.replace('/', '-')}.json"


def key_of(parts: Iterable[str | bytes]) -> str:
    """A short cache key for these values."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:20]


def cached(kind: str, key: str, make: Callable[[Path], None]) -> Path:
    """Return a cache folder filled by `make`, now or earlier; it appears atomically.

    Concurrent processes wait for the first one and use its result. Leftovers of killed processes are removed. Raises
    StorageError if the cache cannot be written, or other users can write to it, which is unsafe because its programs
    are run.
    """
    folder = cache_folder() / kind / key
    if not folder.is_dir():
        with _locked(folder):
            if not folder.is_dir():  # otherwise another process created it while this one waited
                _make(folder, make)
    for each in (folder, folder.parent, cache_folder()):
        _check_owner(each)
    return folder


def _check_owner(folder: Path) -> None:
    status = folder.stat()
    if status.st_uid not in (os.getuid(), 0) or status.st_mode & stat.S_IWOTH:
        raise StorageError(
            f"{folder} belongs to another user, or all users can write to it: programs in it are not run",
            f"set {FOLDER_VARIABLE} to a folder of your own, or remove this one",
        )


def _make(folder: Path, make: Callable[[Path], None]) -> None:
    for left in folder.parent.glob(f"{folder.name}-{'?' * _RANDOM_LETTERS}"):
        shutil.rmtree(left, ignore_errors=True)
    try:
        fresh = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise _unwritable(folder.parent, error) from error
    try:
        make(fresh)
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a cache folder; the system releases it when the process ends for any reason."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # The lock file is kept: if it were removed, two processes could lock different files with the same name.
        file = folder.with_name(f".{folder.name}.lock").open("w")
    except OSError as error:
        raise _unwritable(folder.parent, error) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _unwritable(folder: Path, error: OSError) -> StorageError:
    return StorageError(f"{folder} cannot be written: {error}", f"set {FOLDER_VARIABLE}")
