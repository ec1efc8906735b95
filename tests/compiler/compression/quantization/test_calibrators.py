"""Histograms filled batch by batch, and the ranges chosen from them."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.compression.quantization.affine import affine_for
from compiler.compression.quantization.calibration import Histogram, Scheme, calibrators, get_calibrator, parameters_of
from compiler.errors import OptionError

SCHEME = Scheme()


def histogram_of(*batches: np.ndarray) -> Histogram:
    histogram = Histogram()
    for batch in batches:
        histogram.add(batch)
    return histogram


def test_batches_count_like_one() -> None:
    generator = np.random.default_rng(0)
    batches = [(generator.standard_normal(1000) * scale).astype(np.float32) for scale in (0.1, 5, 1)]
    joined = histogram_of(np.concatenate(batches))
    streamed = histogram_of(*batches)
    assert streamed.reach == joined.reach
    assert (streamed.low, streamed.high) == (joined.low, joined.high)
    # A value next to the border of a bin may be counted on its other side.
    assert np.abs(streamed.counts - joined.counts).sum() <= 4
    assert streamed.total == 3000


def test_values_that_are_not_finite_are_left_out() -> None:
    histogram = histogram_of(np.array([1.0, np.inf, np.nan, -2.0], np.float32))
    assert (histogram.low, histogram.high, histogram.total) == (-2.0, 1.0, 2)


def test_share_outside() -> None:
    histogram = histogram_of(np.linspace(0, 1, 1001, dtype=np.float32))
    assert histogram.share_outside(0.0, 0.9) == pytest.approx(0.1, abs=2e-3)
    assert histogram.share_outside(-1, 2) == 0


@pytest.mark.parametrize("method", calibrators())
def test_every_method_represents_a_uniform_tensor(method: str) -> None:
    values = np.random.default_rng(1).uniform(-1, 3, 20000).astype(np.float32)
    affine = parameters_of(histogram_of(values), get_calibrator(method), SCHEME)
    # Nothing is worth clipping here.
    assert affine.limits[0] < -0.95
    assert affine.limits[1] > 2.9


def test_min_max_holds_an_outlier_and_the_others_clip_it() -> None:
    values = np.random.default_rng(2).standard_normal(200_000).astype(np.float32)
    values[0] = 400
    scales = {
        method: parameters_of(histogram_of(values), get_calibrator(method), SCHEME).scale for method in calibrators()
    }
    assert scales["min-max"] == pytest.approx((400 - values.min()) / 255, rel=1e-3)
    for method in ("percentile", "entropy"):
        assert scales[method] < 0.5 * scales["min-max"], method
    # Clipping one value by 300 costs more squared error than rounding the others coarsely: it stays nearly inside.
    assert 0.5 * scales["min-max"] < scales["mse"] < scales["min-max"]


def test_mse_is_no_worse_than_any_shrunk_range() -> None:
    values = np.random.default_rng(3).laplace(size=50_000).astype(np.float32)
    histogram = histogram_of(values)

    def error(low: float, high: float) -> float:
        return float(((affine_for(low, high, "uint8").round_trip(values) - values) ** 2).mean())

    chosen = get_calibrator("mse")(histogram, SCHEME)
    candidates = [error(histogram.low * a, histogram.high * b) for a in np.linspace(0.1, 1, 10) for b in (0.2, 0.5, 1)]
    assert error(*chosen) <= 1.01 * min(candidates)


def test_an_unknown_method_is_named_with_those_there_are() -> None:
    with pytest.raises(OptionError, match="median") as raised:
        get_calibrator("median")
    assert "min-max" in str(raised.value)
