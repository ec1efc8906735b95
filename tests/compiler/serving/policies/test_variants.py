"""Variants: selection by service level, degradation under overload and recovery, and refusals at load."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compiler.artifact.variants import VariantEntry, VariantIndex, read_variants, write_index
from compiler.errors import ArtifactError, InputError, OptionError, OverloadedError, VerificationError
from compiler.runtime import Module, load
from compiler.runtime.identity import module_identity
from compiler.serving.policies.variants import Degradation, DegradationOptions, Variant, Variants, load_variants
from tests.compiler.runtime.building import dense_artifact
from tests.compiler.serving.services import FunctionService, request

OPTIONS = DegradationOptions(degrade_at_ms=10, restore_at_ms=2, degrade_after=2, restore_after=3)


def variants(waiting: list[float] | None = None) -> tuple[Variants, dict[str, FunctionService]]:
    described = {"float32": (1.0, 4.0), "bf16": (0.999, 2.0), "slow": (0.99, 3.0), "int8": (0.97, 1.0)}
    services = {name: FunctionService(variant=name) for name in described}
    made = [Variant(name, services[name], *numbers) for name, numbers in described.items()]
    load = None if waiting is None else lambda: waiting[0]
    return Variants(made, OPTIONS, waiting_ms=load), services


def chosen(service: Variants, *asked: Any) -> list[str]:
    async def scenario() -> list[str]:
        return [str((await service.infer(each)).notes["variant"]) for each in asked]

    return asyncio.run(scenario())


def test_the_level_chooses_the_most_accurate_that_it_allows() -> None:
    service, _ = variants([0.0])
    assert chosen(
        service,
        request(1),
        request(1, max_cost=2.5),
        request(1, max_cost=1.0),
        request(1, latency_ms=3),
        request(1, 2, latency_ms=4),  # two rows of bf16
        request(1, 2, 3, 4, latency_ms=3),  # none is in time: the cheapest
        request(1, 2, 3, 4, latency_ms=3, min_accuracy=0.999),
    ) == ["float32", "bf16", "int8", "bf16", "bf16", "int8", "bf16"]
    with pytest.raises(InputError, match=r"no variant .* 0\.9995"):
        chosen(service, request(1, min_accuracy=0.9995, max_cost=1.0))


def test_overload_degrades_and_comes_back_with_hysteresis() -> None:
    loads = [0, 11, 11, 11, 11, 11, 11, 5, 5, 1, 1, 1, 1, 1, 1, 1, 11, 1]
    expected = [0, 0, 1, 1, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 0, 0, 0, 0]
    for _ in range(2):  # the same loads, the same levels
        policy = Degradation(OPTIONS, 2)
        assert [policy.observe(load) for load in loads] == expected
    with pytest.raises(OptionError, match="less"):
        DegradationOptions(degrade_at_ms=5, restore_at_ms=5)
    with pytest.raises(OptionError, match="1 at least"):
        DegradationOptions(degrade_after=0)


def test_answers_say_who_served_and_why_and_never_fall_below_the_level() -> None:
    async def scenario() -> None:
        waiting = [0.0]
        service, services = variants(waiting)
        first = await service.infer(request(1))
        assert (first.notes["accuracy"], first.served_by) == (1.0, "model/1/float32")
        assert "degraded" not in first.notes
        waiting[0] = 50.0
        names = [(await service.infer(request(1))).notes for _ in range(5)]
        assert [each["variant"] for each in names] == ["float32", "bf16", "bf16", "int8", "int8"]
        assert [each.get("degraded") for each in names] == [None, 1.0, 1.0, 1.0, 1.0]
        kept = await service.infer(request(1, min_accuracy=0.999))
        assert kept.notes["variant"] == "bf16"
        assert services["slow"].asked == []  # it costs more than a better one

    asyncio.run(scenario())


def test_a_variant_without_room_passes_the_request_on() -> None:
    async def scenario() -> None:
        service, services = variants([0.0])
        services["float32"].failures = [OverloadedError("full")]
        answer = await service.infer(request(1))
        assert (answer.notes["variant"], answer.notes["degraded"]) == ("bf16", 1.0)
        services["float32"].failures = [OverloadedError("full")]
        with pytest.raises(OverloadedError):
            await service.infer(request(1, min_accuracy=1.0))
        services["float32"].failures = [InputError("bad")]
        with pytest.raises(InputError):
            await service.infer(request(1))

    asyncio.run(scenario())


def test_load_is_the_work_of_the_requests_at_hand() -> None:
    async def scenario() -> None:
        service, services = variants()
        services["float32"].gate = asyncio.Event()
        tasks = [asyncio.create_task(service.infer(request(1, 2, 3))) for _ in range(2)]
        await asyncio.sleep(0)
        assert service.waiting_ms == pytest.approx(24.0 / service._cores)
        tasks[0].cancel()
        services["float32"].gate.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert service.waiting_ms == 0
        await service.start()
        await service.close()
        assert all((each.started, each.closed) == (1, 1) for each in services.values())

    asyncio.run(scenario())


def folder_of(tmp_path: Path) -> Path:
    x = np.random.default_rng(0).standard_normal((2, 16)).astype(np.float32)
    module = Module(dense_artifact(), threads=1)
    module.with_reference({"x": x}, module.run({"x": x})).export(tmp_path / "float32.twm")
    identity = module_identity(load(tmp_path / "float32.twm"))
    entry = VariantEntry(
        name="float32", file="float32.twm", identity=identity, score=0.9, accuracy=1.0, cost_ms=1.0, bytes=10
    )
    write_index(tmp_path, VariantIndex(model_name="m", reference="float32", measure="accuracy", variants=(entry,)))
    return tmp_path


def test_each_module_of_a_folder_is_proven_and_is_the_one_that_was_measured(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    index, made = load_variants(folder, lambda module, name: FunctionService(variant=name))
    assert (index.reference, [each.name for each in made]) == ("float32", ["float32"])

    path = folder / "float32.twm"
    module = load(path)
    x = np.ones((2, 16), np.float32)
    other = module.with_reference({"x": x}, module.run({"x": x}))
    other.export(path)
    with pytest.raises(ArtifactError, match="is not the module"):
        load_variants(folder, lambda module, name: FunctionService())
    wrong = {name: array + 1 for name, array in module.run({"x": x}).items()}
    module.with_reference({"x": x}, wrong).export(path)
    with pytest.raises(VerificationError):
        load_variants(folder, lambda module, name: FunctionService())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file": "../float32.twm"}, "not a file of the folder"),
        ({"cost_ms": 0.0}, "cost_ms"),
        ({"accuracy": "1"}, "accuracy"),
        ({"name": "a/b"}, "name"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_an_index_that_makes_no_sense_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = folder_of(tmp_path) / "variants.json"
    content = json.loads(path.read_text())
    content["variants"][0].update(change)
    path.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=message):
        read_variants(tmp_path)
