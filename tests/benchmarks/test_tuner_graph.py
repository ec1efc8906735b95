"""Possible gain of the fastest candidate of each kernel, from the results of tuning."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks._tuner_graph import fastest_seconds
from compiler.tuning.result import TaskResult


def _task(key: str, curve: tuple[tuple[int, float], ...], **values: Any) -> TaskResult:
    given = {"kernel": key, "rule": "r", "count": 1, "config": {}, "trials": 2, "failed": 0, "finished": ""}
    return TaskResult(key=key, curve=curve, default_seconds=None, best_seconds=None, **{**given, **values})


def test_the_fastest_of_all_algorithms_counts_as_often_as_the_kernel_is_called() -> None:
    tasks = [
        _task("a", ((0, 3.0), (2, 2.5)), count=2),
        _task("a by b", ((0, 2.0),), count=2, instead_of="a"),
        _task("c", ((0, 1.0),)),
        _task("not measured", ()),
    ]
    assert fastest_seconds(tasks) == pytest.approx(2 * 2.0 + 1.0)
