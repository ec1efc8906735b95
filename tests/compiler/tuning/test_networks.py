"""Tuning of whole networks: the search with synthetic costs, and an Ethos-U with Vela's cycles."""

from __future__ import annotations

import configparser
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import compiler
from compiler.errors import OptionError, ToolchainError
from compiler.frontends.source import import_model
from compiler.records.identity import model_fingerprint, target_description
from compiler.records.records import ModelLine, RecordWriter, read
from compiler.tuning.networks import NetworkSearch, TrialLog
from compiler.tuning.settings import TuningOptions
from targets.errors import TargetError, ToolchainMissing
from targets.ethos_u import vela
from targets.ethos_u.accelerators import accelerators
from targets.extras import install_command
from targets.measure import NetworkCost, Setting
from tests.targets.ethos_u.checking import target_named
from tests.targets.ethos_u.graphs import QuantizedGraph

_SPACE: dict[str, tuple[Setting, ...]] = {
    "option": ("fast", "small"),
    "a": ("plain", "x"),
    "b": ("plain", "y", "wrong", "refused"),
}


class MadeUp:
    """A network whose settings `a` and `b` save cycles only together; "small" takes less memory and more cycles."""

    space = _SPACE
    options = ("option",)
    groups = (("a", "b"),)

    def __init__(self, memory_limit: int | None = None) -> None:
        self.memory_limit = memory_limit

    def cost(self, settings: Mapping[str, Setting]) -> NetworkCost:
        if settings.get("b") == "refused":
            raise TargetError("refused")
        changed = {name for name in ("a", "b") if name in settings}
        cycles = {0: 100.0, 1: 120.0, 2: 80.0}[len(changed)] - (50 if settings.get("b") == "wrong" else 0)
        small = settings.get("option") == "small"
        return NetworkCost(cycles + 30 * small, 50 if small else 90)

    def computes_the_same(self, settings: Mapping[str, Setting]) -> bool:
        return settings.get("b") != "wrong"


def searched(folder: Path, memory_limit: int | None = None, trials: int | None = None) -> NetworkSearch:
    target = target_named()
    options = TuningOptions(records=folder, trials=trials)
    with RecordWriter.in_folder(folder, target_description(target)) as writer:
        log = TrialLog(writer, "model", target.measurer(), options, 0.0)
        search = NetworkSearch(MadeUp(memory_limit), log, {})
        search.run()
    return search


def test_settings_that_help_together_are_found_and_wrong_ones_are_not(tmp_path: Path) -> None:
    search = searched(tmp_path)
    assert search.chosen == {"a": "x", "b": "y"}
    assert (search.default.cost, search.best.cost) == (100.0, 80.0)
    (path,) = tmp_path.iterdir()
    records = read(path).records
    assert {record.status for record in records} == {"ok", "wrong-numbers", "build-error"}
    assert all(record.measure.name == "vela cycles ethos-u55-128" for record in records)


@pytest.mark.parametrize(("limit", "memory"), [(90, 90), (60, 50), (40, 50)])
def test_a_limit_of_memory_comes_before_cycles(limit: int, memory: int, tmp_path: Path) -> None:
    assert searched(tmp_path, limit).best.memory == memory


def test_trials_are_limited(tmp_path: Path) -> None:
    searched(tmp_path, trials=2)
    (path,) = tmp_path.iterdir()
    assert len(read(path).records) == 2


def net() -> onnx.ModelProto:
    graph = QuantizedGraph(0)
    x = graph.input(1, 3, 12, 12)
    y = graph.node("Relu", [graph.node("Conv", [x, graph.weight((16, 3, 3, 3), 0)], pads=[1] * 4, strides=[2, 2])])
    y = graph.rounded(y, 0.3, -128)
    return graph.model(graph.rounded(graph.node("GlobalAveragePool", [y]), 0.05, 0))


def test_a_network_is_tuned_without_a_device_and_compiled_so(tmp_path: Path) -> None:
    target = target_named()
    results = [compiler.tune(net(), target, records=tmp_path / name, progress=None) for name in ("first", "second")]
    assert results[0].after < results[0].before
    assert results[0].measure.kind == "cycles"
    assert [each.network for each in results] == [results[0].network] * 2
    assert results[0].trials == results[1].trials
    json.dumps(results[0].to_dict())
    feeds = {"x0": np.random.default_rng(0).normal(size=(1, 3, 12, 12)).astype(np.float32)}
    plain = compiler.compile(net(), target, threads=1, records=False)
    tuned = compiler.compile(net(), target, threads=1, records=results[0].records)
    for name, wanted in plain.run(feeds).items():
        np.testing.assert_array_equal(tuned.run(feeds)[name], wanted)
    partition: Any = tuned.manifest.target.details["partition"]
    assert results[0].network is not None
    assert partition["settings"] == results[0].network.settings
    assert partition["measure"] == "vela cycles ethos-u55-128"
    again = compiler.tune(net(), target, records=tmp_path / "first", progress=None)
    assert (again.after, again.trials < results[0].trials) == (results[0].after, True)


def test_weights_go_to_the_sram_that_is_the_accelerators_alone(tmp_path: Path) -> None:
    target = target_named("cortex-m55+ethos-u65-256")
    found = compiler.tune(net(), target, records=tmp_path, trials=4, progress=None).network
    assert found is not None
    assert found.settings == {"weights": "in SRAM"}
    assert found.after.cost < found.before.cost
    modes = configparser.ConfigParser()
    modes.read(str(files("ethosu") / "config_files" / "Arm" / "vela.ini"))
    for each in accelerators().values():
        size = modes[f"Memory_Mode.{each.memory}"].get("arena_cache_size", "0")
        assert each.dedicated_sram_kib * 1024 == int(size), each.name


def test_what_cannot_be_tuned_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = target_named()
    with pytest.raises(OptionError, match="the least is"):
        compiler.tune(net(), target, records=tmp_path, memory_limit=64, progress=None)
    graph = QuantizedGraph(1)
    graph.input(1, 4)
    floats = graph.model(graph.node("Erf", ["x0"]))
    with pytest.raises(OptionError, match="nothing of the model runs on the ethos-u55-128"):
        compiler.tune(floats, target, records=tmp_path, progress=None)
    with pytest.raises(OptionError, match="are not timed"):
        compiler.tune(net(), target, records=tmp_path, devices=["127.0.0.1:1"], progress=None)
    with pytest.raises(OptionError, match="no limit of memory"):
        compiler.tune(net(), "host", records=tmp_path, memory_limit=64, progress=None)

    def missing() -> None:
        raise ToolchainMissing("ethos-u-vela is not installed", install_command("ethos-u"))

    monkeypatch.setattr(vela, "require", missing)
    with pytest.raises(OptionError, match="ethos-u-vela is not installed"):
        compiler.tune(net(), target, records=tmp_path, progress=None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"7 convolution 1x1x1x1": "flat"}, "has no step '7 convolution 1x1x1x1'"),
        ({"0 convolution 16x3x3x3": "../../x"}, r"cannot be written as '../../x'"),
        ({"vela optimise": "--help"}, "vela optimise is '--help'"),
        ({"vela arena": -5}, "vela arena is -5"),
        ({"weights": "nowhere"}, "weights are 'nowhere'"),
    ],
)
def test_a_record_that_does_not_fit_is_one_error(settings: dict[str, Setting], message: str, tmp_path: Path) -> None:
    target, model = target_named(), net()
    key = model_fingerprint(import_model(model).mod, "float32")
    measure = target.measurer().measure()
    with RecordWriter(tmp_path / "records.jsonl", target_description(target)) as writer:
        writer.append(ModelLine(target=writer.target, model=key, settings=settings, measure=measure))
    with pytest.raises(ToolchainError, match=message):
        compiler.compile(model, target, threads=1, records=writer.path)
