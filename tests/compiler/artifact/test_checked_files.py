"""Large files are checked once, and again after a change."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from compiler.artifact import opening, read_artifact, write_artifact
from compiler.errors import ArtifactError
from tests.compiler.artifact.samples import sample_artifact


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that is large enough, and older than the resolution of file timestamps."""
    monkeypatch.setenv("TENSORWRIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(opening, "MIN_BYTES", 1)
    monkeypatch.setattr(opening, "_SETTLED", 0)
    path = tmp_path / "model.twm"
    write_artifact(sample_artifact(), path)
    return path


def _is_checked(path: Path) -> bool:
    return opening.open_module(path).digests is not None


def test_a_file_is_checked_once(module: Path) -> None:
    assert _is_checked(module)  # opened, and not read
    wanted = read_artifact(module)
    assert not _is_checked(module)
    found = read_artifact(module)
    assert found.manifest == wanted.manifest
    for name, array in wanted.parameters.items():
        np.testing.assert_array_equal(found.parameters[name], array)


def test_a_file_that_was_changed_is_checked_again(module: Path) -> None:
    read_artifact(module)
    status = module.stat()
    with module.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    os.utime(module, ns=(status.st_atime_ns, status.st_mtime_ns))  # which cannot hide the change
    with pytest.raises(ArtifactError, match="damaged"):
        read_artifact(module)


def test_a_damaged_file_is_not_remembered(module: Path) -> None:
    whole = bytearray(module.read_bytes())
    whole[-1] ^= 1
    module.write_bytes(whole)
    for _ in range(2):
        with pytest.raises(ArtifactError, match="damaged"):
            read_artifact(module)


def test_records_of_others_do_not_count(module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_artifact(module)
    folder = Path(os.environ["TENSORWRIGHT_CACHE"]) / "checked"
    folder.chmod(0o777)
    assert _is_checked(module)
    folder.chmod(0o700)
    assert not _is_checked(module)
    monkeypatch.setenv("TENSORWRIGHT_CHECK_ALWAYS", "1")
    assert _is_checked(module)


def test_small_and_fresh_files_are_not_remembered(module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "MIN_BYTES", 256 << 20)
    read_artifact(module)
    assert _is_checked(module)
    monkeypatch.setattr(opening, "MIN_BYTES", 1)
    monkeypatch.setattr(opening, "_SETTLED", 10**12)
    read_artifact(module)
    assert _is_checked(module)
