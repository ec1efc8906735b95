"""Kernels without a rule: MetaSchedule proposes schedules, and compilations replay the recorded traces."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from tvm import relax

import schedules
from compiler.records.identity import target_description
from compiler.records.library import tuned_configs
from compiler.records.records import RecordWriter, read
from compiler.tuning.cost_models import cost_models
from compiler.tuning.measuring.pool import MeasurementPool
from compiler.tuning.search import searches, serves
from compiler.tuning.session import Session
from compiler.tuning.state import Limits
from compiler.tuning.tasks import Task, tasks_of
from schedules.config import Config
from schedules.errors import NotScheduledError
from schedules.ir.stages import Kernel, kernels_of
from schedules.ir.tir import tvm
from schedules.stages.rules import GeneralRule, Traces, digest, traced_function
from tests.compiler.tuning.kernels import lowered, product_task, target

FILTERS = np.random.default_rng(0).standard_normal((3, 2, 3, 3, 3)).astype("float32")


@cache
def volume_module() -> tvm.IRModule:
    """A 3-D convolution in plain layout, for which there is no rule."""
    return lowered(
        lambda builder, x: builder.emit(relax.op.nn.conv3d(x, relax.const(FILTERS), padding=1)), [(1, 2, 5, 6, 7)]
    )


def volume_task() -> Task:
    (task,) = tasks_of(volume_module(), target()).tasks
    return task


def search(folder: Path, trials: int) -> Session:
    with (
        MeasurementPool(target(), serial=True, builders=1) as pool,
        RecordWriter.in_folder(folder, target_description(target())) as writer,
    ):
        model, strategy = cost_models.make("roofline"), searches.make("metaschedule", seed=1)
        session = Session(target(), [volume_task()], pool, writer, model, strategy)
        session.resume(read(writer.path).records)
        session.run(Limits(trials=trials))
    return session


def test_traces_are_found_recorded_and_followed(tmp_path: Path) -> None:
    session = search(tmp_path, 5)
    assert session.problems == []
    records = [record for record in read(tmp_path).records if record.config["trace"]]
    good = [record for record in records if record.status == "ok"]
    assert len(good) >= 3, [record.note for record in records]

    again = search(tmp_path, 2)
    assert again.progress.resumed >= 5
    assert len({record.config_key for record in read(tmp_path).records}) >= 7  # nothing is tried twice

    trace = str(min(good, key=lambda record: record.seconds or 1.0).config["trace"])
    task = volume_task()
    mod, report = schedules.apply_schedules(volume_module(), target().machine, {task.key: Config.of(trace=trace)})
    assert [kernel.source for kernel in report.kernels] == ["record"]
    volume = np.random.default_rng(1).standard_normal((1, 2, 5, 6, 7)).astype("float32")
    machine = relax.VirtualMachine(relax.build(mod, target().tvm_target()), tvm.cpu())
    found = machine["main"](tvm.runtime.tensor(volume)).numpy()
    np.testing.assert_allclose(found, convolved(volume), rtol=1e-4, atol=1e-4)
    assert tuned_configs(target(), tmp_path)(task.rule, task.workload) is not None


def convolved(volume: np.ndarray) -> np.ndarray:
    padded = np.pad(volume.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3, 3), axis=(2, 3, 4))
    return np.asarray(np.einsum("bcdhwijk,fcijk->bfdhw", windows, FILTERS.astype(np.float64)))


def test_other_searches_leave_such_kernels_alone() -> None:
    task = volume_task()
    assert isinstance(task.rule, GeneralRule)
    assert serves(searches.make("metaschedule"), task)
    assert not serves(searches.make("evolutionary"), task)
    assert serves(searches.make("metaschedule"), product_task())


def test_a_kernel_is_told_from_others_whatever_its_names() -> None:
    ((_, function),) = kernels_of(volume_module())
    assert digest(function) == digest(function.with_attr("global_symbol", "another"))
    ((_, other),) = kernels_of(
        lowered(lambda b, x: b.emit(relax.op.nn.conv3d(x, relax.const(FILTERS))), [(1, 2, 5, 6, 7)])
    )
    assert digest(function) != digest(other)


def test_a_trace_that_does_not_fit_is_refused() -> None:
    ((_, function),) = kernels_of(volume_module())
    for trace in ("not json", "[]", '[[["GetSBlock",[],["no such block","main"],["b0"]]],[]]'):
        with pytest.raises(NotScheduledError, match="trace"):
            traced_function(Kernel.of(function), trace)


def test_any_text_is_a_choice_of_the_knob() -> None:
    assert "[]" in Traces()
    assert 3 not in Traces()
    assert list(Traces()) == [""]
