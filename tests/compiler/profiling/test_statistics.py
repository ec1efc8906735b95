from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler.profiling.timing import Latency, median, percentile

# Above subnormal numbers, where interpolation rounds to nothing on either side.
TIMES = st.lists(st.floats(min_value=1e-9, max_value=1e6), min_size=1, max_size=60)


@given(TIMES, st.floats(min_value=0, max_value=100))
def test_percentile_is_numpys(values: list[float], percent: float) -> None:
    # Both interpolate linearly, in another order of operations: the last bits may differ.
    assert percentile(sorted(values), percent) == pytest.approx(np.percentile(values, percent), rel=1e-9)


@pytest.mark.parametrize(("values", "percent"), [([], 50), ([1.0], -1), ([1.0], 101)])
def test_percentile_refuses(values: list[float], percent: float) -> None:
    with pytest.raises(ValueError, match=r"no values|percent is"):
        percentile(values, percent)


@given(TIMES)
def test_latency_orders_and_bounds(values: list[float]) -> None:
    latency = Latency.of(values)
    assert latency.minimum <= latency.p50 <= latency.p90 <= latency.p99 <= latency.maximum
    assert latency.runs == len(values)
    assert latency.mean == pytest.approx(np.mean(values))
    deviation = np.std(values, ddof=1) if len(values) > 1 else 0.0
    # Differences of nearly equal values cancel: the error is relative to the values.
    assert latency.deviation == pytest.approx(deviation, rel=1e-6, abs=1e-9 * latency.maximum)
    assert latency.to_dict()["throughput"] == pytest.approx(1 / np.mean(values))


def test_throughput_of_nothing_measurable_is_infinite() -> None:
    assert Latency.of([0.0, 0.0]).throughput == math.inf


def test_median_takes_any_order() -> None:
    assert median([3.0, 1.0, 2.0]) == 2.0
