"""Cache folders are made once and atomically, by the first process."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from compiler.errors import StorageError
from compiler.support.cache import FOLDER_VARIABLE, cached

_FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def _slowly(folder: Path) -> None:
    (folder / str(os.getpid())).touch()
    time.sleep(0.3)
    (folder / "whole").touch()


def _one(_: int) -> list[str]:
    return sorted(path.name for path in cached("kind", "key", _slowly).iterdir())


def test_processes_that_want_the_same_make_it_once(cache: Path) -> None:
    with _FORK.Pool(3) as pool:
        seen = pool.map(_one, range(3), chunksize=1)
    assert seen[0] == seen[1] == seen[2]
    assert len(seen[0]) == 2
    assert "whole" in seen[0]


def _dies(folder: Path) -> None:
    (folder / "half").touch()
    os._exit(1)


def test_what_a_killed_process_left_is_removed(cache: Path) -> None:
    other = cached("kind", "key-of-another", lambda folder: (folder / "file").touch())
    process = _FORK.Process(target=cached, args=("kind", "key", _dies))
    process.start()
    process.join()
    assert [path.name for path in cache.glob("kind/key-????????/*")] == ["half"]
    made = cached("kind", "key", lambda folder: (folder / "file").touch())
    assert [path.name for path in made.iterdir()] == ["file"]
    assert sorted(path.name for path in (cache / "kind").glob("[!.]*")) == ["key", other.name]


def test_what_could_not_be_made_leaves_nothing(cache: Path) -> None:
    def fails(folder: Path) -> None:
        (folder / "half").touch()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cached("kind", "key", fails)
    assert not list((cache / "kind").glob("[!.]*"))
    assert cached("kind", "key", lambda _: None).is_dir()


def test_a_cache_that_can_not_be_written_is_an_error(cache: Path) -> None:
    cache.write_text("a file")
    with pytest.raises(StorageError, match="cannot be written"):
        cached("kind", "key", lambda _: None)


def test_a_folder_that_others_may_write_to_is_not_used(cache: Path) -> None:
    folder = cached("kind", "key", lambda folder: (folder / "program").touch())
    for each in (folder, folder.parent, cache):
        mode = each.stat().st_mode
        each.chmod(0o777)
        with pytest.raises(StorageError, match="all users can write"):
            cached("kind", "key", _slowly)
        each.chmod(mode)
    assert cached("kind", "key", _slowly) == folder


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_a_folder_of_another_user_is_not_used(cache: Path) -> None:
    folder = cached("kind", "key", lambda folder: (folder / "program").touch())
    os.chown(folder, 12345, 12345)
    with pytest.raises(StorageError, match="belongs to another user"):
        cached("kind", "key", _slowly)
