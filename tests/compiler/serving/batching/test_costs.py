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
    assert costs.seconds("a", 1) == pytest.approx(1.0)
    assert costs.careful("a", 1) > 1.5  # deadlines reckon with them
    assert costs.fast_seconds("a", 1) < 1.5


@pytest.mark.parametrize("stalled", [1, 8])
@pytest.mark.parametrize("fixed", [0.0, 3.0])
def test_a_machine_that_stops_for_a_while_does_not_change_what_rows_cost(stalled: int, fixed: float) -> None:
    costs = Costs()

    def run(turns: int) -> None:
        for rows in (1, 2, 8, 4) * turns:
            costs.add("a", rows, fixed + rows)

    def known() -> tuple[float | None, ...]:
        return costs.seconds("a", 1), costs.seconds("a", 8), costs.enough("a")

    costs.add("a", stalled, 1000.0)  # the first run of all
    run(25)
    assert known() == pytest.approx((fixed + 1, fixed + 8, 1 if not fixed else 20), rel=0.1)
    run(25)
    before = known()
    costs.add("a", stalled, 1000.0)
    run(2)
    costs.add("a", stalled, 1000.0)
    assert known() == pytest.approx(before, rel=0.01)


def test_a_machine_that_becomes_slower_is_followed() -> None:
    costs = Costs()
    for speed in (1.0, 3.0):
        for rows in (1, 2, 8, 4) * 60:
            costs.add("a", rows, speed * (0.5 + rows))
        assert costs.seconds("a", 4) == pytest.approx(4.5 * speed, rel=0.15)


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
    for _ in range(50):  # a stall
        accuracy.add(1.0, 1.5)
    assert accuracy.factor == 1.5
