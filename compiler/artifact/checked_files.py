"""Large modules whose digests this user has checked on this machine: they are not read whole once more.

A record names a file by its device, inode, size, the times of its last changes, and the digest of its head, which
covers the digests of its sections. Every write to a file changes these times, and no user may set the second of them
back. So a record is wrong only where the disk itself lost bits, or where root or the user wanted it to be.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from dataclasses import dataclass
from pathlib import Path

from compiler.support.cache import cache_folder, key_of

LEAST_BYTES = 256 << 20
"""Bytes of a file from which on it is remembered."""
ALWAYS_VARIABLE = "TENSORWRIGHT_CHECK_ALWAYS"
"""Environment variable: 1 checks every file whenever it is loaded."""
_SETTLED = 2 * 10**9  # nanoseconds since the last change, which is more than the steps of a file system's clock


@dataclass(frozen=True)
class CheckedFile:
    """A file as it was when it was opened, and the name of its record; `key` is None for one that is not remembered."""

    path: str
    state: tuple[int, ...]
    key: str | None

    @staticmethod
    def of(path: str | os.PathLike[str], state: tuple[int, ...], head: bytes) -> CheckedFile:
        """The file whose `file_state` was this before it was opened, with the digest of its head."""
        settled = max(state[3:]) + _SETTLED < time.time_ns()
        kept = settled and state[2] >= LEAST_BYTES and os.environ.get(ALWAYS_VARIABLE, "0") in ("", "0")
        key = key_of([repr(state), head]) if kept and file_state(path) == state else None
        return CheckedFile(os.fspath(path), state, key)

    def is_known(self) -> bool:
        """True if its digests were checked before, and it was not changed since."""
        return self.key is not None and _is_private(_folder()) and (_folder() / self.key).is_file()

    def remember(self) -> None:
        """Its digests are right. A cache that cannot be written only costs the next check."""
        if self.key is None or file_state(self.path) != self.state:
            return
        with contextlib.suppress(OSError):
            _folder().mkdir(mode=0o700, parents=True, exist_ok=True)
            (_folder() / self.key).touch(mode=0o600)


def file_state(path: str | os.PathLike[str]) -> tuple[int, ...]:
    """Device, inode, size and the times of the last changes of a file; zeros where there is none."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return (0,) * 5
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _folder() -> Path:
    return cache_folder() / "checked"


def _is_private(folder: Path) -> bool:
    """True if nobody but the user can write to a folder."""
    try:
        status = folder.stat()
    except OSError:
        return False
    return status.st_uid == os.getuid() and not stat.S_IMODE(status.st_mode) & 0o022
