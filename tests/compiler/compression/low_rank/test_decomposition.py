"""Factors of matrices and convolutions, compared with the weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.compression.low_rank import (
    factor_convolution,
    factor_filters,
    factor_matrix,
    factor_tucker,
    rank_for,
)

Array = np.ndarray[Any, Any]


def _loss(product: Array, weight: Array) -> float:
    return float(((product - weight.astype(np.float64)) ** 2).sum() / (weight.astype(np.float64) ** 2).sum())


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    out=st.integers(1, 23),
    channels=st.integers(1, 23),
    kernel=st.sampled_from([(), (1,), (3,), (3, 3), (1, 5), (2, 2, 3)]),
    energy=st.floats(0.3, 1.0),
)
def test_no_more_is_lost_than_allowed(
    seed: int, out: int, channels: int, kernel: tuple[int, ...], energy: float
) -> None:
    weight = np.random.default_rng(seed).standard_normal((out, channels, *kernel)).astype(np.float32)
    ways = [factor_matrix] if not kernel else [factor_filters, factor_tucker, factor_convolution]
    for way in ways:
        factors = way(weight, energy, 1)
        assert factors.product.shape == weight.shape
        assert _loss(factors.product, weight) <= 1 - energy + 1e-9


def test_the_factors_multiply_to_the_product() -> None:
    weight = np.random.default_rng(0).standard_normal((12, 10, 3, 3)).astype(np.float32)
    inputs, core, filters = (each.astype(np.float64) for each in factor_tucker(weight, 0.8, 1).weights)
    composed = np.einsum("of,fcyx,ci->oiyx", filters[:, :, 0, 0], core, inputs[:, :, 0, 0])
    np.testing.assert_allclose(composed, factor_tucker(weight, 0.8, 1).product, atol=1e-5)
    first, second = (each.astype(np.float64) for each in factor_filters(weight, 0.8, 1).weights)
    composed = np.einsum("or,riyx->oiyx", second[:, :, 0, 0], first)
    np.testing.assert_allclose(composed, factor_filters(weight, 0.8, 1).product, atol=1e-5)


def test_weights_of_low_rank_lose_nothing() -> None:
    random = np.random.default_rng(0)
    weight = (random.standard_normal((64, 5)) @ random.standard_normal((5, 48))).astype(np.float32)
    factors = factor_matrix(weight, 1 - 1e-9, 1)
    assert [each.shape for each in factors.weights] == [(64, 5), (5, 48)]
    assert _loss(factors.product, weight) < 1e-10


@pytest.mark.parametrize(
    ("energy", "multiple", "rank"), [(0.5, 1, 1), (0.9, 1, 2), (1.0, 1, 3), (0.9, 16, 4), (1e-9, 2, 2)]
)
def test_rank(energy: float, multiple: int, rank: int) -> None:
    assert rank_for(np.array([3.0, 1.0, 0.5, 0.0]), energy, multiple) == rank


def test_zero_weights_have_a_rank() -> None:
    factors = factor_matrix(np.zeros((5, 7), np.float32), 0.9, 1)
    assert [each.shape for each in factors.weights] == [(5, 1), (1, 7)]
    assert not factors.product.any()
