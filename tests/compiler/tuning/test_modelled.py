"""Tuning without a device: costs from a model of the processor, which are deterministic."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import compiler
import targets
from compiler.errors import OptionError
from compiler.records.identity import target_description
from compiler.records.library import TunedConfigs
from compiler.records.record_set import taken_over
from compiler.records.records import Record, RecordWriter, encode, read
from compiler.tuning.measuring.estimating import EstimatingPool
from compiler.tuning.measuring.messages import KernelTask
from compiler.tuning.measuring.pool import Trial
from compiler.tuning.settings import TuningOptions
from compiler.tuning.tune import choose_measurer
from schedules.config import Config
from targets.cpu.modelled import tools
from targets.measure import TIMED, Measure
from tests.fuzz.tuning import convolution_model

PI = "raspberry-pi-5"
needs_llvm = pytest.mark.skipif(not shutil.which("llvm-mca-22"), reason="llvm-22 is not installed")


def _measure(**changes: Any) -> Measure:
    measurer = targets.get(PI).measurer()
    assert measurer is not None
    return Measure(**{"kind": measurer.kind, "name": measurer.name, "version": "22.1.8", **changes})


@needs_llvm
def test_the_same_seed_gives_the_same_choice(tmp_path: Path) -> None:
    found = []
    for number in range(2):
        folder = tmp_path / str(number)
        result = compiler.tune(convolution_model(kernel=1), PI, trials=3, records=folder, seed=3, progress=None)
        loaded = read(folder)
        assert result.measure == loaded.records[0].measure
        assert (result.measure.kind, result.measure.name) == ("modelled", "llvm-mca+caches cortex-a76")
        assert {each.status for each in loaded.records} == {"ok"}
        trials = [(each.task, each.config_key, each.seconds, each.compared) for each in loaded.records]
        found.append((trials, [each.choices for each in loaded.models]))
    assert found[0] == found[1]


def test_a_candidate_is_given_up_by_the_processor_time_it_took() -> None:
    target = targets.get(PI)
    measurer = target.measurer()
    assert measurer is not None
    module = "tests.compiler.tuning.misbehaving_estimator"
    with EstimatingPool(target, measurer, workers=1, limit=1.0, module=module) as pool:
        pool.define(KernelTask("task", "rule", "", ()))
        modes = ("good", "compute", "sleep", "good")
        trials = [Trial("task", Config.of({"mode": mode})) for mode in modes]
        found = pool.trials(trials, lambda _trial, _outcome: None)
    assert [each.status for each in found] == ["ok", "timeout", "timeout", "ok"]
    assert "1 s of processor time" in found[1].note
    assert "did not use the processor" in found[2].note


def _record(number: int, **changes: Any) -> Record:
    values = {"target": "t", "rule": "r", "rule_version": 1, "workload": "w", "config": {"rows": number}}
    return Record(**{"measure": _measure(), **values, **changes})


def test_a_modelled_config_has_to_win_by_the_error_of_the_model() -> None:
    default = _record(0, seconds=1.0, is_default=True)
    for seconds, wins in ((0.93, False), (0.88, True)):
        found = taken_over([default, _record(1, seconds=seconds)], {"rows": 0}.__eq__, margin=0.1)
        assert found is not None
        assert (found.config == {"rows": 1}) is wins
    older = _record(1, seconds=0.5, measure=_measure(version="21.0.0"))
    assert taken_over([default, older], {"rows": 0}.__eq__, margin=0.1) == default  # versions are not compared


def test_a_clock_counts_before_a_model() -> None:
    modelled = [_record(0, seconds=1.0, is_default=True), _record(1, seconds=0.5)]
    timed = [_record(0, seconds=0.1, is_default=True, measure=TIMED), _record(1, seconds=0.2, measure=TIMED)]
    found = taken_over([*timed, *modelled], {"rows": 0}.__eq__, margin=0.1)
    assert found is not None
    assert (found.config, found.measure) == ({"rows": 0}, TIMED)


def test_records_of_a_measure_that_the_target_has_not_are_left_out(tmp_path: Path) -> None:
    target = targets.get(PI)
    with RecordWriter.in_folder(tmp_path, target_description(target)) as writer:
        for name in ("vela cycles ethos-u55-128", "llvm-mca+caches cortex-a72"):
            writer.append(_record(1, target=writer.target, measure=_measure(name=name), seconds=1.0))
        writer.append(_record(2, target=writer.target, seconds=1.0))
    loaded = read(tmp_path)
    assert b'"v":4' in encode(loaded.records[0])
    notes = TunedConfigs(target, loaded).problems
    assert len(notes) == 2
    assert all("is no measure of this target" in note for note in notes)


def test_what_computes_costs_and_what_is_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert choose_measurer(targets.get("host"), TuningOptions()) is None
    assert choose_measurer(targets.get(PI), TuningOptions(devices=("board:9090",))) is None
    with pytest.raises(OptionError, match="cannot be measured here"):
        choose_measurer(targets.get(PI), TuningOptions(measure="timed"))
    with pytest.raises(OptionError, match="cannot be measured here"):
        choose_measurer(targets.get("riscv64-linux"), TuningOptions())  # no model of it
    monkeypatch.setenv("PATH", str(tmp_path))
    tools.find_tools.cache_clear()
    with pytest.raises(OptionError, match="llvm-mca"):
        choose_measurer(targets.get(PI), TuningOptions())
    tools.find_tools.cache_clear()
