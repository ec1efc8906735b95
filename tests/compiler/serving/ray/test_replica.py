"""Parts that need no Ray: options, placement, models on demand, and the error where Ray is missing."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from compiler.artifact import TargetDescription, write_artifact
from compiler.cli import main
from compiler.errors import MissingDependencyError, OptionError, ServiceUnavailableError
from compiler.serving.app.http import Call
from compiler.serving.configuration import model_options
from compiler.serving.ray import RayOptions, deployment, node_resources, required_resources
from compiler.serving.ray.deployment import MultiplexedModels
from compiler.serving.repository import Repository
from tests.compiler.runtime.building import dense_artifact
from tests.compiler.serving.server import dense_file


def model(path: Path, name: str = "dense", **others: Any) -> Any:
    return model_options({"name": name, "path": str(path), **others}, "a model")


def requiring(folder: Path, *features: str) -> Path:
    artifact = dense_artifact()
    target = TargetDescription(
        name="test", architecture=artifact.manifest.target.architecture, required_cpu_features=features
    )
    path = folder / f"{'-'.join(features)}.twm"
    write_artifact(
        dataclasses.replace(artifact, manifest=msgspec.structs.replace(artifact.manifest, target=target)), path
    )
    return path


def test_one_error_where_ray_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    file = dense_file(tmp_path)
    with pytest.raises(MissingDependencyError, match=r"pip install 'ray\[serve\]"):
        deployment([model(file)])
    assert main(["serve", str(file), "--engine", "ray"]) == 2
    assert "ray[serve]" in capsys.readouterr().err


def test_options_of_ray_need_ray(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(dense_file(tmp_path)), "--placement"]) == 2
    assert "--engine ray" in capsys.readouterr().err
    with pytest.raises(OptionError, match="3 to 2 replicas"):
        RayOptions(min_replicas=3, max_replicas=2)


def test_a_replica_requires_what_its_modules_do(tmp_path: Path) -> None:
    version = tmp_path / "versions" / "2"
    version.mkdir(parents=True)
    requiring(tmp_path, "avx512_vnni").rename(version / "model.twm")
    (tmp_path / "versions" / "1").mkdir()
    models = [model(tmp_path / "versions"), model(requiring(tmp_path, "no-such.one"), "other")]
    architecture = f"cpu-{dense_artifact().manifest.target.architecture}"
    assert set(required_resources(models)) == {architecture, "cpu-avx512vnni", "cpu-nosuchone"}
    assert architecture in node_resources(models)
    assert "cpu-nosuchone" not in node_resources(models)


class OneAtATime:
    """As `ray.serve`, for one model at once."""

    def multiplexed(self, max_num_models_per_replica: int) -> Any:
        assert max_num_models_per_replica == 1
        held: dict[str, Any] = {}

        def wrapped(load: Any) -> Any:
            async def get(name: str) -> Any:
                if name not in held:
                    for other in list(held):
                        await held.pop(other).__del__()
                    held[name] = await load(name)
                return held[name]

            return get

        return wrapped


def test_models_are_loaded_when_requests_name_them(tmp_path: Path) -> None:
    async def body() -> None:
        file = dense_file(tmp_path)
        repository = Repository([model(file, name) for name in ("first", "second")], on_demand=True)
        await repository.start()
        assert repository.ready
        routes = MultiplexedModels(repository, OneAtATime(), 1)

        async def asked(path: str, headers: Any = None, content: bytes = b"") -> list[str]:
            await routes.answer(Call("POST", path, headers or {}, content, 0.0))
            return [each.name for each in repository.index() if each.state == "READY"]

        assert await asked("/v2/health/ready") == []
        assert await asked("/v2/models/first/infer") == ["first"]
        assert await asked("/v1/embeddings", content=json.dumps({"model": "second"}).encode()) == ["second"]
        assert await asked("/v1/embeddings", content=b"{") == ["second"]
        assert await asked("/v2/models/unknown/infer") == ["second"]
        assert await asked("/v1/embeddings", {b"serve_multiplexed_model_id": b"first"}) == ["first"]
        with pytest.raises(ServiceUnavailableError):
            repository.service("second")
        await repository.close()

    asyncio.run(body())
