"""Everything that writes, on a full disk: a result, or one error that says so, and no partial file."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import compiler
from compiler.errors import StorageError
from compiler.runtime import Module
from tests.compiler.runtime.test_session import model, rows
from tests.fuzz.tuning import convolution_model


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system without free space."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        subprocess.run(["dd", "if=/dev/zero", f"of={disk / 'rest'}"], capture_output=True, check=False)
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_export_sessions_and_records(disk: Path) -> None:
    module = compiler.compile(model(), threads=1)
    session = module.session(capacity=2000)
    session.run({"rows": rows(3)})
    options: dict[str, Any] = {"threads": 1, "timing": "serial", "cost_model": "random", "search": "random"}
    writes: list[Callable[[], object]] = [
        lambda: module.export(disk / "a.twm"),
        lambda: session.save(disk / "states"),
        lambda: compiler.tune(convolution_model(), trials=2, records=disk / "records", **options),
    ]
    for write in writes:
        with pytest.raises(StorageError, match="No space left"):
            write()
    assert [path for path in disk.rglob("*") if path.is_file() and path.name != "rest" and path.stat().st_size] == []


def test_a_cache_without_room_is_no_failure(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORWRIGHT_CACHE", str(disk / "cache"))
    monkeypatch.setenv("TENSORWRIGHT_CACHE_MB", "100")
    assert isinstance(compiler.compile(model(), threads=1), Module)
    assert list(disk.rglob("*.twm")) == []


def test_no_room_for_temporary_files(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    monkeypatch.setenv("TMPDIR", str(disk))
    with pytest.raises(StorageError, match="free, and building may take"):
        compiler.compile(model(), threads=1)
