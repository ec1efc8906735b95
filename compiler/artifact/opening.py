"""The first step of reading a module, without NumPy: its digests are computed while the packages that use it are
imported.

Large modules whose digests this user has already checked on this machine are not read completely again.

A record identifies a file by its device, inode, size, times of its last changes, and the digest of its header, which
covers the digests of its sections. Every write to a file changes these times, and no user can reset the second one. So
a record can be wrong only if the disk corrupted data, or if root or the user caused it.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from dataclasses import dataclass
from pathlib import Path

from compiler.artifact.container import Layout, TreeDigests, begin_digests, parse_header
from compiler.artifact.storage import read_mapped, read_private
from compiler.support.cache import cache_folder, key_of

Source = str | os.PathLike[str] | bytes | bytearray | memoryview


@dataclass(frozen=True)
class OpenedModule:
    """The bytes of a module whose header has been checked.

    Attributes:
        data: the whole file.
        origin: its name in errors.
        layout: the positions of its sections.
        digests: the digests of the sections, in order, computed by other threads; None for a file that was checked
            before.
        file: used to record that the digests are correct; None for bytes, and for files in private memory.
    """

    data: memoryview
    origin: str
    layout: Layout
    digests: TreeDigests | None
    file: CheckedFile | None = None

    def section(self, index: int) -> memoryview:
        """The bytes of a section, unchecked."""
        return _section(self.data, self.layout, index)


def open_module(source: Source, *, private: bool = False) -> OpenedModule:
    """Map a file, check its header, and start computing the digests of its sections.

    Args:
        source: a path, or the bytes of such a file.
        private: read the file into this process's memory instead of mapping it.

    Raises:
        StorageError: the file cannot be read.
        ArtifactError: it is not a module, or is truncated, or its header is damaged.
        IncompatibleArtifactError: it has a newer format version.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        # Copied unless it is immutable: content must not change after it was checked.
        data, origin = memoryview(source if isinstance(source, bytes) else bytes(source)), "the module"
        layout, file = parse_header(data, origin), None
    else:
        origin, state = str(source), file_state(source)
        data = read_private(source) if private else read_mapped(source)
        layout = parse_header(data, origin)
        file = None if private else CheckedFile.of(source, state, layout.digest)
    if file is not None and file.is_known():
        return OpenedModule(data, origin, layout, None)
    sections = [[_section(data, layout, index)] for index in range(len(layout.sections))]
    return OpenedModule(data, origin, layout, begin_digests(sections, os.cpu_count() or 1), file)


def _section(data: memoryview, layout: Layout, index: int) -> memoryview:
    section = layout.sections[index]
    return data[section.offset : section.offset + section.size]


MIN_BYTES = 256 << 20
"""Minimum size in bytes of a file to be recorded as checked."""
ALWAYS_VARIABLE = "TENSORWRIGHT_CHECK_ALWAYS"
"""Environment variable: 1 checks every file on each load."""
_SETTLED = 2 * 10**9  # nanoseconds since the last change, longer than the clock resolution of file systems


@dataclass(frozen=True)
class CheckedFile:
    """A file in its state when it was opened, and the name of its record; `key` is None if the file is not recorded."""

    path: str
    state: tuple[int, ...]
    key: str | None

    @staticmethod
    def of(path: str | os.PathLike[str], state: tuple[int, ...], head: bytes) -> CheckedFile:
        """The file with this `file_state` before it was opened, and with this digest of its header."""
        settled = max(state[3:]) + _SETTLED < time.time_ns()
        kept = settled and state[2] >= MIN_BYTES and os.environ.get(ALWAYS_VARIABLE, "0") in ("", "0")
        key = key_of([repr(state), head]) if kept and file_state(path) == state else None
        return CheckedFile(os.fspath(path), state, key)

    def is_known(self) -> bool:
        """True if its digests were checked before, and it has not changed since."""
        return self.key is not None and is_private(_folder()) and (_folder() / self.key).is_file()

    def remember(self) -> None:
        """Record that its digests are correct. If the cache cannot be written, only the next check takes longer."""
        if self.key is None or file_state(self.path) != self.state:
            return
        with contextlib.suppress(OSError):
            _folder().mkdir(mode=0o700, parents=True, exist_ok=True)
            (_folder() / self.key).touch(mode=0o600)


def file_state(path: str | os.PathLike[str]) -> tuple[int, ...]:
    """Device, inode, size and last change times of a file; zeros if there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return (0,) * 5
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _folder() -> Path:
    return cache_folder() / "checked"


def is_private(folder: Path) -> bool:
    """True if only the user can write to a folder."""
    try:
        status = folder.stat()
    except OSError:
        return False
    return status.st_uid == os.getuid() and not stat.S_IMODE(status.st_mode) & 0o022
