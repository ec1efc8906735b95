"""Normalizations in types that TVM does not support, against numpy in float64."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from tvm import relax

import compiler
from compiler.passes.rewriting.matching import as_constant
from tests.compiler.passes.building import Array, Build

_SHAPE = (2, 6, 5, 3)
# Of two equal numbers rounded each once, of the type's last place; a sum of a few dozen numbers in between.
_TYPES = [(np.dtype(np.float64), 1e-13), (np.dtype(ml_dtypes.bfloat16), 2.0**-7)]


def _expected(x: Array, axes: tuple[int, ...]) -> Array:
    mean = x.mean(axes, keepdims=True)
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(axes, keepdims=True) + 1e-5)


def _run(dtype: np.dtype[Any], parameters: tuple[int, ...], make: Any) -> tuple[Array, Array, Array, Array]:
    """(x, scale, bias, the result) as float64."""
    build = Build(1)
    scale, bias = (build.random.standard_normal(parameters).astype(dtype) for _ in range(2))
    x = (build.random.standard_normal(_SHAPE) + 3).astype(dtype)
    mod = build.module(build.emit(make(build.input("x", _SHAPE, dtype.name), as_constant(scale), as_constant(bias))))
    got = next(iter(compiler.compile(mod, threads=1).run({"x": x}).values()))
    assert got.dtype == dtype
    wide = [np.asarray(each, np.float64) for each in (x, scale, bias, got)]
    return wide[0], wide[1], wide[2], wide[3]


@pytest.mark.parametrize(("dtype", "bound"), _TYPES)
@pytest.mark.parametrize("axes", [(3,), (2, 3), (1,)])
def test_layer_norm(dtype: np.dtype[Any], bound: float, axes: tuple[int, ...]) -> None:
    sizes = tuple(_SHAPE[axis] for axis in axes)
    x, scale, bias, got = _run(dtype, sizes, lambda *given: relax.op.nn.layer_norm(*given, list(axes)))
    full = [size if axis in axes else 1 for axis, size in enumerate(_SHAPE)]
    wanted = _expected(x, axes) * scale.reshape(full) + bias.reshape(full)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=bound * np.abs(wanted).max())


@pytest.mark.parametrize(("dtype", "bound"), _TYPES)
def test_instance_norm(dtype: np.dtype[Any], bound: float) -> None:
    x, scale, bias, got = _run(dtype, (6,), lambda *given: relax.op.nn.instance_norm(*given, 1, [2, 3]))
    wanted = _expected(x, (2, 3)) * scale.reshape(6, 1, 1) + bias.reshape(6, 1, 1)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=bound * np.abs(wanted).max())


def test_group_norm() -> None:
    dtype, bound = _TYPES[0]  # the operator itself takes no bfloat16
    x, scale, bias, got = _run(dtype, (6,), lambda *given: relax.op.nn.group_norm(*given, 2, 1, [2, 3]))
    grouped = _expected(x.reshape(2, 2, 3, 5, 3), (2, 3, 4)).reshape(_SHAPE)
    wanted = grouped * scale.reshape(6, 1, 1) + bias.reshape(6, 1, 1)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=bound * np.abs(wanted).max())
