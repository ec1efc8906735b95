from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest

from compiler.artifact import write_artifact
from compiler.errors import ArtifactError, ModelNotFoundError, ServiceUnavailableError, StorageError, VerificationError
from compiler.serving.configuration import model_options
from compiler.serving.repository import Repository
from compiler.serving.request import Request
from tests.compiler.runtime.building import dense_artifact
from tests.compiler.serving.server import dense_file

X = np.ones((1, 16), np.float32)


def with_repository(path: Path, test: Callable[[Repository], Awaitable[None]]) -> None:
    async def body() -> None:
        repository = Repository([model_options({"name": "dense", "path": str(path)}, "a model")])
        await repository.start()
        try:
            await test(repository)
        finally:
            await repository.close()

    asyncio.run(body())


def version(folder: Path, number: int) -> Path:
    (folder / str(number)).mkdir()
    return dense_file(folder / str(number), "model")


def test_the_newest_version_takes_over(tmp_path: Path) -> None:
    async def test(repository: Repository) -> None:
        assert repository.service("dense").version == "9"
        version(tmp_path, 10)
        with repository.lease("dense") as old:
            await repository.load("dense")
            assert repository.service("dense", "10").version == "10"
            # Who has the old version is answered by it.
            assert (await old.infer(Request({"x": X}))).served_by == "dense/9/default"
        with pytest.raises(ModelNotFoundError, match="no version '9'"):
            repository.service("dense", "9")

    version(tmp_path, 9)
    (tmp_path / "notes").mkdir()
    with_repository(tmp_path, test)


@pytest.mark.parametrize("damage", ["truncated", "garbage", "missing", "wrong numbers"])
def test_a_version_that_fails_is_refused_and_the_old_one_answers(tmp_path: Path, damage: str) -> None:
    async def test(repository: Repository) -> None:
        path = version(tmp_path, 2)
        content = path.read_bytes()
        if damage == "truncated":
            path.write_bytes(content[: len(content) // 2])
        elif damage == "garbage":
            path.write_bytes(b"nothing")
        elif damage == "missing":
            path.unlink()
        else:
            path.unlink()
            outputs = {"y": np.zeros((3, 8), np.float32)}
            write_artifact(dense_artifact().with_reference({"x": np.ones((3, 16), np.float32)}, outputs), path)
        with pytest.raises((ArtifactError, StorageError, VerificationError)):
            await repository.load("dense")
        (status,) = repository.index()
        assert (status.version, status.state) == ("1", "READY")
        assert "loading failed" in status.reason
        assert (await repository.service("dense").infer(Request({"x": X}))).served_by == "dense/1/default"
        shutil.rmtree(tmp_path / "2")
        await repository.load("dense")
        assert repository.index()[0].reason == ""

    version(tmp_path, 1)
    with_repository(tmp_path, test)


def test_a_server_starts_with_the_newest_version_that_is_sound(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(repository: Repository) -> None:
        (status,) = repository.index()
        assert (status.version, status.state) == ("1", "READY")
        assert "version 2" in status.reason

    version(tmp_path, 1)
    version(tmp_path, 2).write_bytes(b"nothing")
    with_repository(tmp_path, test)
    assert "version 2 was not loaded" in caplog.text


def test_a_server_that_cannot_start_raises_and_logs_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test(repository: Repository) -> None: ...

    with pytest.raises(StorageError):
        with_repository(tmp_path / "nothere.twm", test)
    assert caplog.text == ""


def test_unloading_and_loading(tmp_path: Path) -> None:
    async def test(repository: Repository) -> None:
        await repository.unload("dense")
        assert not repository.ready
        with pytest.raises(ServiceUnavailableError, match="unloaded"):
            repository.service("dense")
        await repository.load("dense")
        assert repository.index()[0].state == "READY"
        with pytest.raises(ModelNotFoundError):
            await repository.load("other")

    with_repository(dense_file(tmp_path), test)


def test_a_staged_version_can_be_discarded(tmp_path: Path) -> None:
    async def test(repository: Repository) -> None:
        await repository.stage("dense")
        await repository.discard("dense")
        with pytest.raises(ServiceUnavailableError):
            repository.commit("dense")
        assert repository.ready

    with_repository(dense_file(tmp_path), test)


@pytest.mark.parametrize(
    ("architecture", "expected"), [("", "holds no versions"), ("LlamaForCausalLM", "is a model, not a compiled module")]
)
def test_a_folder_without_versions_is_refused(architecture: str, expected: str, tmp_path: Path) -> None:
    async def body() -> None:
        with pytest.raises(StorageError, match=expected):
            await Repository([model_options({"path": str(tmp_path)}, "a model")]).start()

    if architecture:
        (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    asyncio.run(body())
