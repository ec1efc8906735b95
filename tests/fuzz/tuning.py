"""The tuning suite: tuning killed at a random moment loses no record, and the next run resumes."""

from __future__ import annotations

import importlib
import os
import random
import select
import signal
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compiler.records.records import read
from compiler.tuning.measuring.messages import Outcome as Measured
from compiler.tuning.measuring.pool import MeasurementPool, Trial
from compiler.tuning.state import Progress
from tests.fuzz.outcome import Outcome

MAX_TRIALS = 12
"""A case is killed within so many trials after its tuning began, and up to `MORE_SECONDS` later."""
MORE_SECONDS = 0.4
_REPORT = struct.Struct("<ii")  # resumed, trials
_READY_SECONDS = 60.0


def convolution_model(stride: int = 2, kernel: int = 3) -> bytes:
    """One convolution: a fast kernel with a large search space."""
    size = 14 // stride
    weight = np.random.default_rng(0).standard_normal((32, 32, kernel, kernel)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], strides=[stride, stride], pads=[kernel // 2] * 4)],
        "convolution",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 32, 14, 14])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 32, size, size])],
        [numpy_helper.from_array(weight, "w")],
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


def prepare(folder: Path) -> Path:
    """Return the folder of the records; each worker resumes from its own."""
    return folder


def case(folder: Path, seed: int) -> Outcome:
    """Tune, kill it, and check the records: every announced one must be on disk, and the next run must find it."""
    return _killed(folder, seed, instant=False)


def instant_case(folder: Path, seed: int) -> Outcome:
    """The same without building and running kernels: tests only writing and reading."""
    return _killed(folder, seed, instant=True)


class InstantPool:
    """Replacement for `MeasurementPool`: every config takes a millisecond."""

    serial = True
    memory = "cpu"
    measure = MeasurementPool.measure
    margin, margin_of_alternatives = MeasurementPool.margin, MeasurementPool.margin_of_alternatives

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __enter__(self) -> InstantPool:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def define(self, task: object) -> None:
        """Do nothing."""

    def prepare(self, keys: object) -> dict[str, str]:
        """Do nothing."""
        return {}

    def processor_seconds(self) -> dict[str, float]:
        """Return 0."""
        return {}

    def trials(self, trials: Sequence[Trial], emit: Callable[[Trial, Measured], None]) -> list[Measured]:
        """Return successful trials."""
        outcomes = [Measured(trial.config, "ok", 1e-3, runs=3) for trial in trials]
        for trial, outcome in zip(trials, outcomes, strict=True):
            time.sleep(1e-3)
            emit(trial, outcome)
        return outcomes


def _killed(folder: Path, seed: int, *, instant: bool) -> Outcome:
    records = folder / f"records-{os.getpid()}"
    before = len(_whole_records(records)[0])
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _tune_until_killed(records, writer, seed, instant)
    os.close(writer)
    generator = random.Random(seed)
    wanted = generator.randrange(MAX_TRIALS)
    try:
        reports = _reports_until(reader, wanted)
        if not reports:
            return Outcome("exception", "start", "the tuning ended before it began")
        time.sleep(generator.uniform(0.0, MORE_SECONDS))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    resumed, trials = _last_report(reader, reports)
    os.close(reader)
    found, problem = _whole_records(records)
    label = f"killed after {wanted} trials"
    if problem:
        return Outcome("wrong", label, problem)
    if resumed != before:
        return Outcome("wrong", label, f"{resumed} trials resumed of {before}")
    if len(found) < before + trials:
        return Outcome("wrong", label, f"{len(found)} records of {before} and {trials} new ones")
    return Outcome("right", label)


def _whole_records(folder: Path) -> tuple[set[str], str]:
    """The distinct recorded configs, and the faults of the files."""
    loaded = read(folder)
    odd = [record for record in loaded.records if record.status != "ok" or not record.seconds]
    problem = "; ".join(loaded.problems) or (f"an odd record: {odd[0]}" if odd else "")
    return {record.task + record.config_key for record in loaded.records}, problem


def _tune_until_killed(records: Path, writer: int, seed: int, instant: bool) -> None:
    """In the child: tune until killed or finished."""
    os.setsid()
    try:
        module = importlib.import_module("compiler.tuning.tune")
        if instant:
            vars(module)["MeasurementPool"] = InstantPool

        def announce(progress: Progress) -> None:
            os.write(writer, _REPORT.pack(progress.resumed, progress.trials))

        module.tune(
            convolution_model(),
            trials=10_000,
            records=records,
            threads=1,
            timing="serial",
            cost_model="random",
            search="random",
            seed=seed,
            progress=announce,
        )
    finally:
        os._exit(0)


def _reports_until(reader: int, trials: int) -> bytes:
    """Announcements until a number of trials was reached; empty if tuning never began."""
    data = b""
    while select.select([reader], [], [], _READY_SECONDS)[0] and (chunk := os.read(reader, _REPORT.size)):
        data += chunk
        if _REPORT.unpack(data[-_REPORT.size :])[1] >= trials:
            break
    return data


def _last_report(reader: int, before: bytes) -> tuple[int, int]:
    """The last announced (resumed, trials), before the child's end of the pipe was closed."""
    data = before
    while chunk := os.read(reader, 1 << 16):
        data += chunk
    whole = len(data) // _REPORT.size * _REPORT.size
    resumed, trials = _REPORT.unpack(data[whole - _REPORT.size : whole])
    return resumed, trials
