"""Tuning for a GPU without one: nvcc's report and the model order candidates."""

from __future__ import annotations

from pathlib import Path

import pytest

import compiler
import targets
from compiler.errors import OptionError
from compiler.frontends.source import ImportOptions
from compiler.records.records import read
from compiler.tuning.measuring.build_worker import Builder
from compiler.tuning.measuring.estimate_worker import Candidate
from compiler.tuning.measuring.messages import BuildRequest, WorkerSetup
from compiler.tuning.tasks import extract_tasks
from schedules.config import Config
from targets.cuda.nvcc import OVERRIDE
from targets.cuda.target import CudaTarget
from tests.targets.cuda.test_target import needs_nvcc
from tests.targets.cuda_models import chain, products


@needs_nvcc
def test_tuning_without_a_device_says_what_its_numbers_are(tmp_path: Path) -> None:
    result = compiler.tune(chain(4, 24), "h100", trials=1, records=tmp_path)
    assert result.problems == ()
    assert (result.measure.kind, result.measure.name) == ("modelled", "nvcc model sm_90")
    assert result.measure.version.startswith("nvcc ")
    assert result.trials == 1
    records = read(tmp_path).records
    assert {(each.status, each.measure.name) for each in records} == {("ok", "nvcc model sm_90")}


@needs_nvcc
def test_matrix_instructions_are_those_of_the_padded_product() -> None:
    target = targets.get("h100")
    model = ImportOptions().load(products("float16"))
    (task,) = [each for each in extract_tasks(model.mod, target, alternatives=False).tasks if each.tunable]
    builder = Builder(WorkerSetup(target=target))
    builder.handle(task.kernel)
    config = Config.of({"rows": 64, "columns": 32, "depth": 32, "splits": 1})
    kernel = Candidate(builder.scheduled(BuildRequest(task.key, config)), frozenset(), 0, builder)
    measurer = target.measurer()
    assert measurer is not None
    estimate = measurer.estimate(kernel)
    assert estimate.parts["blocks"] == 2 * 4
    assert estimate.parts["multiply-adds of tensor cores"] == 64 * 32 * 128
    assert measurer.estimate(kernel) == estimate


def test_without_nvcc_tuning_names_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(OVERRIDE, "/no/such/nvcc")
    with pytest.raises(OptionError, match=r"nvcc model sm_90: .*nvcc"):
        compiler.tune(chain(4, 24), "h100", trials=1, records=tmp_path)


def test_a_machine_without_speeds_has_no_model() -> None:
    target = targets.get("h100")
    assert isinstance(target, CudaTarget)
    assert target.measurer() is not None
    assert targets.get("cuda-simulated").measurer() is None
