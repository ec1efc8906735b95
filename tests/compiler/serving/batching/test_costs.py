from __future__ import annotations

import numpy as np
import pytest

from compiler.serving.batching.costs import Accuracy, Costs


def test_costs_follow_a_line_over_rows() -> None:
    costs = Costs()
    assert costs.seconds("a", 4) is None
    costs.add("a", 4, 0.4)
    assert costs.seconds("a", 8) == pytest.approx(0.8)  # one size alone: in proportion
    for rows in (1, 2, 8, 1, 2, 8):
        costs.add("a", rows, 0.1 + 0.02 * rows)
    for _ in range(200):
        costs.add("a", 1, 0.12)
        costs.add("a", 8, 0.26)
    assert costs.seconds("a", 4) == pytest.approx(0.18, rel=0.01)
    assert costs.careful("a", 4) >= 1.1 * 0.18
    assert costs.seconds("b", 4) is None
    assert costs.careful("b", 4) == 0.0


def test_runs_that_vary_make_estimates_careful() -> None:
    costs = Costs()
    for turn in range(50):
        costs.add("a", 1, 0.1 if turn % 2 else 0.3)
    assert costs.careful("a", 1) > 2 * 0.2


def test_how_many_rows_are_enough() -> None:
    costs = Costs()
    assert costs.enough("a") is None
    for rows in (4, 4, 4):
        costs.add("a", rows, 1.0)
    assert costs.enough("a") is None  # one size alone does not tell
    for fixed, expected in ((0.0, 1), (0.3, 2), (3.0, 20)):
        for rows in (1, 2, 8) * 200:
            costs.add("a", rows, fixed + rows)
        found = costs.enough("a")
        assert found is not None
        assert abs(found - expected) <= 1


def test_runs_that_waited_for_a_thread_do_not_hide_the_fast_ones() -> None:
    costs = Costs()
    assert costs.fast_seconds("a", 1) == float("inf")
    for turn in range(40):
        costs.add("a", 1, 50.0 if turn % 4 == 3 else 1.0)
    assert costs.seconds("a", 1) > 3.0  # type: ignore[operator]
    assert costs.fast_seconds("a", 1) < 1.5


def test_more_rows_never_cost_less() -> None:
    costs = Costs()
    costs.add("a", 1, 0.5)  # the first run of a shape is slow
    costs.add("a", 8, 0.2)
    assert costs.seconds("a", 32) is not None
    assert costs.seconds("a", 32) >= costs.seconds("a", 8) >= costs.seconds("a", 1) > 0  # type: ignore[operator]


def test_accuracy_follows_what_few_latencies_exceed() -> None:
    accuracy = Accuracy()
    random = np.random.default_rng(0)
    for _ in range(4000):
        accuracy.add(1.0, float(random.uniform(1.0, 2.0)))
    assert 1.8 < accuracy.factor < 2.2
    for _ in range(4000):
        accuracy.add(1.0, 1.0)
    assert accuracy.factor < 1.2
