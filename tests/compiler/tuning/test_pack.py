"""Tuning packs: compiled here, timed by their program on a mock device, and imported here."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import targets
from compiler.errors import OptionError, StorageError
from compiler.frontends.source import import_model
from compiler.passes.context import PassOptions
from compiler.records.library import TunedConfigs, read_current
from compiler.tuning.pack.folder import ranked_configs, write_pack
from compiler.tuning.pack.results import take
from compiler.tuning.tasks import Task, extract_tasks
from schedules.config import Config
from schedules.gpu import gpu_rules
from schedules.gpu.matmul_rule import TiledMatmulRule
from targets.cuda.target import CudaTarget
from tests.targets import cuda_stand_in as stand_in
from tests.targets.cuda.test_target import needs_nvcc
from tests.targets.cuda_stand_in.machine import Machine, make_machine
from tests.targets.test_cuda_options import perceptron

_ROWS = 2
needs_headers = pytest.mark.skipif(stand_in.cuda_headers() is None, reason="nvidia-cuda-runtime is not installed")


@pytest.fixture(scope="module")
def target() -> CudaTarget:
    found = targets.get("h100")
    assert isinstance(found, CudaTarget)
    return found


@pytest.fixture(scope="module")
def machine(target: CudaTarget, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """A machine with a pack of three products, three candidates each."""
    root = tmp_path_factory.mktemp("machine")
    made = write_pack(perceptron(_ROWS)[0], target, root / "pack", trials=9, records=root / "none")
    assert (made.tasks, made.candidates, made.known) == (3, 9, 0)
    found = make_machine(root, target.compiler(), root / "pack" / "lib")
    for library in (root / "pack" / "tasks").iterdir():
        found.add_kernels(library.read_bytes(), target.compiler())
    return found


@pytest.fixture(scope="module")
def measured(machine: Machine) -> dict[str, Any]:
    """results.json of two visits: the first one meets wrong and crashing candidates and is interrupted."""
    cut = machine.run("pack/run", "--seconds", "1e-9")
    assert cut.returncode == 0, cut.stderr
    assert "the time limit is reached" in cut.stdout
    spoilt = machine.run("pack/run", IDLE="kernel_1_kernel", CRASH="kernel_2_kernel")
    assert spoilt.returncode == 0, spoilt.stderr
    assert "all candidates are measured" in spoilt.stdout
    found: dict[str, Any] = json.loads((machine.root / "pack" / "results.json").read_text())
    return found


@needs_nvcc
@needs_headers
def test_each_candidate_is_compared_with_the_default(machine: Machine, measured: dict[str, Any]) -> None:
    alone = {(each["task"], each["candidate"]): each for each in measured["results"] if not each["compared"]}
    assert [alone[task, 0]["status"] for task in range(3)] == ["ok"] * 3
    assert [alone[task, 1]["status"] for task in range(3)] == ["wrong-numbers"] * 3
    assert "not finite where the default's are" in alone[0, 1]["note"]
    assert [alone[task, 2]["status"] for task in range(3)] == ["crash"] * 3
    assert "signal 6" in alone[0, 2]["note"]
    again = machine.run("pack/run", IDLE="kernel_0_kernel")
    assert again.returncode == 0
    assert json.loads((machine.root / "pack" / "results.json").read_text()) == measured


@needs_nvcc
@needs_headers
def test_what_was_timed_is_recorded_once_and_compiled_with(
    machine: Machine, target: CudaTarget, tmp_path: Path
) -> None:
    name = machine.path("all.json")
    assert machine.run("pack/run", "--results", name).returncode == 0
    results = json.loads((machine.root / "all.json").read_text())
    # The stand-in's times say nothing: the last candidate of the first task is to be the fastest by far.
    for each in results["results"]:
        each["seconds"] = [1e-6 * (1 if (each["task"], each["candidate"]) == (0, 2) else 9)] * 8
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results))
    taken = take(path, target, records=tmp_path / "records")
    assert (taken.added, taken.known, taken.failed) == (len(results["results"]), 0, 0)
    assert taken.tasks[0].gain == pytest.approx(9)
    assert [task.gain for task in taken.tasks[1:]] == [1, 1]
    again = take(path, target, records=tmp_path / "records")
    assert (again.added, again.known) == (0, taken.added)
    loaded = read_current(taken.records)
    assert {record.method for record in loaded.records} == {"timed"}
    versions = [json.loads(line)["v"] for line in taken.records.read_text().splitlines()]
    assert set(versions[1:]) == {3}  # which those before the method do not read
    (line,) = loaded.models
    (choice,) = line.choices
    assert dict(choice.config) == taken.tasks[0].config
    assert TunedConfigs(target, loaded, line.model)(*first_kernel(target)) == Config.of(choice.config)
    # What is measured does not go into the next pack.
    (first, *_) = kernels(target)
    known = {Config.of(record.config) for record in loaded.records if record.task == first.key}
    assert not known & set(ranked_configs(first, target.machine, known)[1:])


def kernels(target: CudaTarget) -> list[Task]:
    model = import_model(perceptron(_ROWS)[0])
    found = extract_tasks(model.mod, target, PassOptions(checks=model.checks), alternatives=False)
    return sorted((each for each in found.tasks if each.tunable), key=lambda each: -each.operations)


def first_kernel(target: CudaTarget) -> tuple[Any, Any]:
    (first, *_) = kernels(target)
    return first.rule, first.workload


@needs_nvcc
@needs_headers
def test_a_machine_that_cannot_run_a_pack_says_why(machine: Machine) -> None:
    def error(*arguments: object, **settings: object) -> str:
        done = machine.run("pack/run", *arguments, **settings)
        assert done.returncode == 1
        return done.stderr

    fresh = "--results", machine.path("fresh.json")
    assert "NVIDIA's driver finds no GPU" in error(*fresh, DEVICES=0)
    assert "compute capability 9.0 or newer, and this machine has stand-in (7.5)" in error(*fresh, CAPABILITY=75)
    assert "/missing/results.json cannot be written: No such file" in error(
        "--results", machine.path("missing/results.json")
    )
    (machine.root / "other.json").write_text('{"format": 1, "digest": "0", "device": "", "header": "", "results": []}')
    assert "holds the results of another pack" in error("--results", machine.path("other.json"))


@needs_nvcc
@needs_headers
def test_results_that_do_not_fit_are_refused(measured: dict[str, Any], target: CudaTarget, tmp_path: Path) -> None:
    path = tmp_path / "results.json"

    def refused(words: str, changed: dict[str, Any], target: str = "h100") -> None:
        path.write_text(json.dumps(changed))
        with pytest.raises(OptionError, match=words):
            take(path, target, records=tmp_path / "records")

    refused("holds times of target 'h100', and not of 'a100'", measured, "a100")
    refused("holds no results of a pack", {"results": []})
    other = measured["results"][0] | {"candidate": 99}
    refused("a candidate that the pack does not have", measured | {"results": [other]})
    header = re.sub(r'"rule_version":\d+', '"rule_version":0', measured["header"])
    refused("times of version 0 of the rule 'gpu-products'", measured | {"header": header})
    with pytest.raises(StorageError, match="cannot be read"):
        take(tmp_path / "none.json", target)
    assert not read_current(tmp_path / "records").records


def test_packs_are_for_graphics_processors(tmp_path: Path) -> None:
    for name in ("host", "cuda-simulated"):
        with pytest.raises(OptionError, match="packs are for GPUs"):
            write_pack(perceptron()[0], name, tmp_path / "pack")
    with pytest.raises(OptionError, match="exists and is not an empty folder"):
        write_pack(perceptron()[0], "h100", Path(__file__).parent)


def test_rules_with_knobs_estimate_their_configs(target: CudaTarget) -> None:
    for task in kernels(target):
        assert isinstance(task.rule, TiledMatmulRule)
        costs = [task.rule.units(task.workload, config, target.machine) for config in task.space]
        # The depth is split by default only where that is estimated to gain a quarter.
        assert task.rule.units(task.workload, task.default, target.machine) <= 1.25 * min(costs)
    assert {"gpu-tensor-cores", "gpu-products"} <= {rule.name for rule in gpu_rules()}
