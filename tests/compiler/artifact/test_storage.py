"""Files are written atomically, even if the disk fails."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from compiler.artifact import read_artifact, write_artifact
from compiler.artifact.storage import write_atomically
from compiler.errors import StorageError
from tests.compiler.artifact.samples import sample_artifact

LARGE = {"weight": np.zeros(1 << 20, np.uint8)}


@contextmanager
def _file_size_limit(limit: int) -> Iterator[None]:
    """Limit every file of this process to `limit` bytes: further writes fail with EFBIG."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_file_that_can_not_grow(tmp_path: Path) -> None:
    path = tmp_path / "a.twm"
    write_artifact(sample_artifact(), path)
    before = path.read_bytes()
    with _file_size_limit(100_000), pytest.raises(StorageError, match="cannot be written"):
        write_artifact(sample_artifact(parameters=LARGE), path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before


def test_a_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("file systems cannot be mounted here; the other tests fake the failures")
    try:
        with pytest.raises(StorageError, match="No space left") as caught:
            write_artifact(sample_artifact(parameters=LARGE), disk / "a.twm")
        assert caught.value.hint
        assert list(disk.iterdir()) == []
        write_artifact(sample_artifact(), disk / "small.twm")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(StorageError, match="Read-only"):
            write_artifact(sample_artifact(), disk / "b.twm")
        assert [path.name for path in disk.iterdir()] == ["small.twm"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("call", ["fsync", "replace", "fchmod"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_failure_at_any_step_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(StorageError, match=os.strerror(code)):
        write_atomically(tmp_path / "a", [b"content"])
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"first"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "a", pieces())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["missing/a.twm", "file/a.twm", "a" * 300, "nul\0", "folder"])
def test_places_where_no_file_can_be(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inside").write_bytes(b"")
    with pytest.raises(StorageError):
        write_artifact(sample_artifact(), tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_pipe_or_device_is_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(StorageError, match="not a regular file"):
        write_artifact(sample_artifact(), pipe)
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


def test_replacing_a_file_does_not_disturb_who_has_it_open(tmp_path: Path) -> None:
    path = tmp_path / "a.twm"
    write_artifact(sample_artifact(), path)
    old = read_artifact(path)
    weight = old.parameters["weight"].copy()
    write_artifact(sample_artifact(parameters={"weight": np.full((3, 5), 7, np.float32)}), path)
    np.testing.assert_array_equal(old.parameters["weight"], weight)
    assert (read_artifact(path).parameters["weight"] == 7).all()


def test_the_usual_permissions(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        write_artifact(sample_artifact(), tmp_path / "a.twm")
    finally:
        os.umask(mask)
    assert (tmp_path / "a.twm").stat().st_mode & 0o777 == 0o640
