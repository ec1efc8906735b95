"""Scales, zero points and weights against exact rational arithmetic."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.compression.quantization.affine import affine_for, decibels, noise_ratio, quantize_weight

_FLOATS = st.floats(-1e6, 1e6, width=32)


@given(_FLOATS, _FLOATS, st.sampled_from(["uint8", "int8"]), st.booleans())
@settings(max_examples=60)
def test_zero_is_exact_and_the_range_is_held(one: float, other: float, dtype: str, symmetric: bool) -> None:
    low, high = sorted((one, other))
    affine = affine_for(low, high, dtype, symmetric=symmetric)
    assert affine.round_trip(np.zeros(1, np.float32))[0] == 0
    start, end = affine.limits
    # The zero point is rounded, so either end may be off by half a step.
    assert start <= min(low, 0) + 0.501 * affine.scale
    assert end >= max(high, 0) - 0.501 * affine.scale


@given(st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=20), st.floats(2.0**-8, 4.0, width=32))
@settings(max_examples=60)
def test_rounding_is_to_the_nearest_representable_number(values: list[float], reach: float) -> None:
    affine = affine_for(-reach, reach, "uint8")
    step, (start, end) = Fraction(affine.scale), affine.limits
    for value, got in zip(values, affine.round_trip(np.array(values, np.float32)), strict=True):
        exact = min(max(Fraction(value), Fraction(start)), Fraction(end))
        # float32's division may turn the wrong way where the exact quotient is a tie, never farther.
        assert abs(Fraction(float(got)) - exact) <= step * Fraction(1, 2) + step * Fraction(1, 2**14)


def test_a_tensor_of_zeros_has_a_scale() -> None:
    affine = affine_for(0.0, 0.0, "uint8")
    assert affine.scale == 1.0
    assert np.array_equal(affine.round_trip(np.zeros(3, np.float32)), np.zeros(3))


@pytest.mark.parametrize("axis", [0, 1])
def test_each_filter_has_its_own_scale(axis: int) -> None:
    weight = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)
    weight[2] *= 100
    quantized = quantize_weight(weight, axis, per_channel=True)
    others = 1 - axis
    assert np.array_equal(np.abs(quantized.values).max(axis=others), np.full(weight.shape[axis], 127))
    assert np.all(np.abs(quantized.dequantized() - weight) <= quantized.broadcast_scale() * 0.5001)


def test_one_scale_for_all_filters_costs_the_small_ones() -> None:
    weight = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)
    weight[2] *= 1000
    each, all_ = (quantize_weight(weight, 0, per_channel=flag).dequantized() for flag in (True, False))
    small = np.arange(6) != 2
    assert noise_ratio(each[small], weight[small])[0] < 1e-3 * noise_ratio(all_[small], weight[small])[0]


def test_a_dead_filter_stays_zero() -> None:
    weight = np.zeros((2, 3), np.float32)
    weight[1] = 1
    assert np.array_equal(quantize_weight(weight, 0, per_channel=True).dequantized(), weight)


def test_decibels() -> None:
    assert decibels(1.0, 100.0) == pytest.approx(20.0)
    assert decibels(0.0, 1.0) == 200.0
    assert decibels(float("inf"), 1.0) == decibels(float("nan"), 1.0) == -200.0


def test_what_is_infinite_in_both_is_no_noise_and_in_one_alone_is_all_of_it() -> None:
    exact = np.array([3.0, -np.inf, np.nan, 4.0])
    assert noise_ratio(np.array([3.5, -np.inf, np.nan, 4.0]), exact) == (0.25, 25.0)
    assert noise_ratio(np.array([3.5, np.inf, np.nan, 4.0]), exact)[0] == np.inf
    assert noise_ratio(np.array([3.5, -np.inf, 1.0, 4.0]), exact)[0] == np.inf
