"""Limits that keep NaN: right for every value, and in vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax, te

from schedules.instructions.finish import vector_limits
from schedules.ir.tir import tirx
from tests.schedules.harness import assembly, evaluate, normal, runnable, scheduled

TARGETS = runnable()
SIZES = st.sampled_from([1, 2, 7, 8, 15, 17, 33, 61])


def clip(low: float, high: float) -> Any:
    """A kernel as frontends write it."""

    def limited(data: Any) -> Any:
        def point(*at: Any) -> Any:
            value = data(*at)
            inner = tirx.Min(tirx.Max(value, tirx.const(low, "float32")), tirx.const(high, "float32"))
            return tirx.Select(tirx.isnan(value), value, inner)

        return te.compute(data.shape, point, name="limited")

    return lambda builder, x: builder.emit_te(limited, builder.emit(relax.op.add(x, x)))


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=5, deadline=None)
@given(rows=SIZES, columns=SIZES, low=st.sampled_from([-1.5, 0.0]), high=st.sampled_from([0.25, 6.0, np.inf]))
def test_limits_keep_nan(target: str, rows: int, columns: int, low: float, high: float) -> None:
    x = 4 * normal((rows, columns))
    x.flat[:: max(1, x.size // 5)] = np.nan
    x.flat[-1] = -np.inf
    result = evaluate(clip(low, high), [x], target)
    np.testing.assert_array_equal(result, np.clip(x + x, np.float32(low), np.float32(high)))


@pytest.mark.parametrize("target", TARGETS)
def test_limits_run_in_vectors(target: str) -> None:
    mod, _ = scheduled(clip(0.0, 6.0), [((64, 64), "float32")], target)
    text = assembly(mod, target)
    assert "ucomiss" not in text
    assert "maxps" in text
    assert "minps" in text


def test_other_choices_stay() -> None:
    x, y = tirx.Var("x", "float32"), tirx.Var("y", "float32")
    zero = tirx.FloatImm("float32", 0.0)
    for choice in (
        tirx.Select(tirx.isnan(x), y, tirx.Max(x, zero)),
        tirx.Select(tirx.isnan(x), x, tirx.Max(y, zero)),
        tirx.Select(tirx.isnan(x), x, tirx.Max(x, y)),
    ):
        used: set[str] = set()
        assert vector_limits(choice, used).same_as(choice)
        assert not used
