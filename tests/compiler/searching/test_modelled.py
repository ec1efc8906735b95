"""Kernel times from a target's cost model: each kernel is estimated once, each whole module anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

import compiler.searching.measure as modelled
import targets
from compiler.errors import UserError
from compiler.searching.layer_table import LayerTable
from compiler.searching.measure import Modelled
from compiler.tuning.measuring.messages import KernelTask, Outcome
from compiler.tuning.measuring.pool import Trial
from targets.measure import Measurer
from tests.compiler.searching.test_layer_table import products

TARGET = targets.get("raspberry-pi-5")
MEASURER = cast(Measurer, SimpleNamespace(measure=lambda: "made up"))


class Pool:
    """Replaces worker processes: a kernel takes one microsecond per element of its largest argument."""

    def __init__(self, *_: Any) -> None:
        self.tasks: dict[str, KernelTask] = {}
        self.tried: list[str] = []
        self.closed = 0

    def define(self, task: KernelTask) -> None:
        assert task.key not in self.tasks
        self.tasks[task.key] = task

    def trials(self, trials: Sequence[Trial], emit: Callable[..., None]) -> list[Outcome]:
        self.tried += [trial.key for trial in trials]
        return [Outcome(trial.config, "ok", 1e-6 * self._numbers(trial.key), runs=1) for trial in trials]

    def _numbers(self, key: str) -> int:
        return max(shape[0] * shape[-1] for shape in (each.shape for each in self.tasks[key].arguments))

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Pool:
    made = Pool()
    monkeypatch.setattr(modelled, "EstimatingPool", lambda *_: made)
    return made


def test_kernels_are_estimated_once_and_whole_modules_anew(pool: Pool) -> None:
    table = LayerTable(TARGET, Modelled(TARGET, MEASURER))
    large, small = (table.lowered(products(*widths)) for widths in ((16, 64, 64, 8), (16, 64, 8)))
    table.fill([small, large])
    assert len(pool.tried) == len({*small.calls, *large.calls}) == 3
    table.fill([large])
    assert len(pool.tried) == 3
    whole = table.whole(large)
    assert len(pool.tried) == 3 + len(large.calls)
    assert table.errors() == [pytest.approx(0.0)]
    assert table.seconds(large) == pytest.approx(whole)
    table.close()
    assert pool.closed == 1


def test_a_kernel_without_an_estimate_is_an_error(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    table = LayerTable(TARGET, Modelled(TARGET, MEASURER))
    monkeypatch.setattr(pool, "trials", lambda trials, emit: [Outcome(each.config, "timeout") for each in trials])
    with pytest.raises(UserError, match="cannot tell the cost of kernel"):
        table.fill([table.lowered(products(16, 8))])
