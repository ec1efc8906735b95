"""Tuning on devices behind the engine's RPC server and tracker, here on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

import compiler
from compiler.errors import OptionError
from compiler.tuning.measuring.lab import Lab, Trial
from compiler.tuning.measuring.messages import Effort
from compiler.tuning.measuring.runners import parse_device
from compiler.tuning.records import read
from tests.compiler.tuning.kernels import product_task, target
from tests.compiler.tuning.rpc import rpc_server, rpc_tracker
from tests.fuzz.tuning import convolution_model


def test_device_names() -> None:
    assert parse_device("pi:9090") == (None, "pi", 9090)
    assert parse_device("boards@10.0.0.1:9190") == ("boards", "10.0.0.1", 9190)
    for text in ("pi", "pi:", ":9090", "pi:99999", "key@"):
        with pytest.raises(OptionError, match="HOST:PORT"):
            parse_device(text)


def test_tuning_on_a_server(tmp_path: Path) -> None:
    with rpc_server() as port:
        device = f"127.0.0.1:{port}"
        result = compiler.tune(
            convolution_model(),
            trials=6,
            records=tmp_path,
            threads=1,
            devices=[device],
            cost_model="roofline",
        )
    assert [each for each in result.problems if "beat" not in each] == []  # others may use this machine
    assert result.trials == 6 or any("limit" in task.finished for task in result.tasks)
    records = read(tmp_path).records
    assert {record.device for record in records} == {device}
    assert [record.status for record in records] == ["ok"] * len(records)


def test_a_fleet_behind_a_tracker_measures_in_parallel() -> None:
    task = product_task()
    with rpc_tracker() as tracker:
        options = ("--tracker", f"127.0.0.1:{tracker}", "--key", "boards")
        with rpc_server(*options), rpc_server(*options):
            device = f"boards@127.0.0.1:{tracker}"
            with Lab(target(), [device, device], builders=1) as lab:
                lab.define(task.kernel)
                assert lab.prepare([task.key]) == {}
                trials = [Trial(task.key, config, Effort(0.02)) for config in list(task.space)[:6]]
                outcomes = lab.trials(trials, lambda _trial, _outcome: None)
                assert [outcome.status for outcome in outcomes] == ["ok"] * 6, [each.note for each in outcomes]
                assert [worker.starts for worker in lab.measurers] == [1, 1]


def test_a_server_that_is_gone_fails_trials_and_not_the_tuner() -> None:
    task = product_task()
    with Lab(target(), ["127.0.0.1:9"], builders=1, measure_timeout=5.0) as lab:
        lab.define(task.kernel)
        assert lab.prepare([task.key]) == {}
        (outcome,) = lab.trials([Trial(task.key, task.default, Effort(0.02))], lambda _trial, _outcome: None)
    assert outcome.status in ("crash", "timeout")
