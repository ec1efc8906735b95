"""Random graphs through the whole canonicalization: results stay equal, including NaN and infinities."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tvm
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tvm import relax

from compiler.passes.context import PipelineContext
from compiler.passes.pipeline import run_pipeline
from compiler.passes.rewriting.matching import as_constant
from compiler.passes.verify import compare
from tests.compiler.passes.building import Array, Build, run_module

op = relax.op
SIZE = 4  # every tensor has four dimensions of this size or 1, so that any two fit together


def number(value: float) -> Any:
    return as_constant(np.array(value, "float32"))


class Grower:
    """Grows a graph an operator at a time, from values of shape (SIZE,) * 4 that stay near magnitude 1."""

    def __init__(self, build: Build, draw: Any) -> None:
        self.build = build
        self.draw = draw
        self.values = [build.input("x", (SIZE,) * 4), build.input("y", (SIZE,) * 4)]

    def pick(self) -> Any:
        return self.draw(st.sampled_from(self.values[-4:]))

    def vector(self) -> Any:
        shape = self.draw(st.sampled_from([(SIZE,), (1, SIZE, 1, 1), (SIZE, 1, 1), (1,), ()]))
        return self.build.constant(shape)

    def grow(self) -> None:
        kind = self.draw(st.sampled_from(sorted(STEPS)))
        self.values.append(STEPS[kind](self, self.pick()))

    def emit(self, value: Any) -> Any:
        return self.build.emit(value)


def _norm(g: Grower, x: Any) -> Any:
    centered = g.emit(op.subtract(x, g.emit(op.mean(x, [-1], True))))
    variance = g.emit(op.mean(g.emit(op.power(centered, number(2))), [-1], True))
    root = g.emit(op.sqrt(g.emit(op.add(variance, number(1e-2)))))
    return g.emit(op.add(g.emit(op.multiply(g.emit(op.divide(centered, root)), g.build.constant((SIZE,)))), g.vector()))


def _gelu(g: Grower, x: Any) -> Any:
    error = g.emit(op.erf(g.emit(op.divide(x, number(math.sqrt(2))))))
    return g.emit(op.multiply(g.emit(op.multiply(x, g.emit(op.add(error, number(1))))), number(0.5)))


def _convolution(g: Grower, x: Any) -> Any:
    groups = g.draw(st.sampled_from([1, 2, SIZE]))
    weight = g.build.constant((SIZE, SIZE // groups, 3, 3))
    source = g.emit(op.nn.pad(x, [0, 0, 0, 0, 1, 1, 1, 1]))
    return g.emit(op.multiply(g.emit(op.nn.conv2d(source, weight, groups=groups)), number(0.2)))


def _batch_norm(g: Grower, x: Any) -> Any:
    constants = [g.build.constant((SIZE,)) for _ in range(3)]
    variance = as_constant((0.5 + g.build.random.random(SIZE)).astype("float32"))
    norm = g.emit(op.nn.batch_norm(x, *constants, variance, axis=1, training=False))
    return g.emit(relax.TupleGetItem(norm, 0))


def _halves(g: Grower, x: Any) -> Any:
    axis = g.draw(st.integers(0, 3))
    parts = [g.emit(op.strided_slice(x, [axis], [begin], [begin + 2])) for begin in (0, 2)]
    return g.emit(op.concat(parts[:: g.draw(st.sampled_from([1, -1]))], axis))


STEPS: dict[str, Any] = {
    "add": lambda g, x: g.emit(op.add(x, g.pick())),
    "add constant": lambda g, x: g.emit(op.add(g.vector(), x)),
    "batch norm": _batch_norm,
    "cast": lambda g, x: g.emit(op.astype(g.emit(op.astype(x, "float64")), "float32")),
    "convolution": _convolution,
    "divide": lambda g, x: g.emit(op.divide(x, number(g.draw(st.sampled_from([1.0, 2.0, 3.0]))))),
    "gelu": _gelu,
    "halves": _halves,
    "matmul": lambda g, x: g.emit(op.multiply(g.emit(op.matmul(x, g.build.constant((SIZE, SIZE)))), number(0.3))),
    "multiply": lambda g, x: g.emit(op.tanh(g.emit(op.multiply(x, g.pick())))),
    "negative": lambda g, x: g.emit(op.negative(x)),
    "norm": _norm,
    "reduce": lambda g, x: g.emit(op.subtract(x, g.emit(op.mean(x, [g.draw(st.integers(0, 3))], True)))),
    "relu": lambda g, x: g.emit(op.nn.relu(x)),
    "reshape": lambda g, x: g.emit(op.reshape(g.emit(op.sin(g.emit(op.reshape(x, (-1, SIZE))))), (SIZE,) * 4)),
    "scale": lambda g, x: g.emit(op.multiply(x, g.vector())),
    "silu": lambda g, x: g.emit(op.multiply(x, g.emit(op.sigmoid(x)))),
    "softmax": lambda g, x: g.emit(op.nn.softmax(x, g.draw(st.integers(0, 3)))),
    "subtract": lambda g, x: g.emit(op.subtract(x, g.pick())),
    "transpose": lambda g, x: g.emit(op.permute_dims(x, g.draw(st.permutations(range(4))))),
}


def canonical(mod: tvm.IRModule) -> tvm.IRModule:
    result = run_pipeline(mod, PipelineContext(), until="canonicalize").mod
    relax.analysis.well_formed(result)
    return result


def grown(data: st.DataObject) -> tvm.IRModule:
    build = Build(data.draw(st.integers(0, 1000)))
    grower = Grower(build, data.draw)
    for _ in range(data.draw(st.integers(2, 9))):
        grower.grow()
    outputs = {grower.pick(): None, grower.values[-1]: None}
    return build.module(*outputs)


@settings(max_examples=9, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_the_numbers_stay(data: st.DataObject) -> None:
    mod = grown(data)
    random = np.random.default_rng(0)
    inputs = [random.standard_normal((SIZE,) * 4).astype("float32") for _ in range(2)]
    after = run_module(canonical(mod), *inputs)
    for got, expected in zip(after, run_module(mod, *inputs), strict=True):
        assert compare(got, expected) is None


def _places(array: Array) -> list[Array]:
    return [np.isnan(array), array == np.inf, array == -np.inf]


ELEMENTWISE = ["add", "add constant", "cast", "divide", "gelu", "negative", "relu", "scale", "silu", "transpose"]


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_nan_and_infinity_stay_where_they_were(data: st.DataObject) -> None:
    build = Build(data.draw(st.integers(0, 1000)))
    grower = Grower(build, data.draw)
    for _ in range(data.draw(st.integers(1, 6))):
        grower.values.append(STEPS[data.draw(st.sampled_from(ELEMENTWISE))](grower, grower.pick()))
    mod = build.module(grower.values[-1])
    special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, 1e30, -2.5], "float32")
    inputs = [np.random.default_rng(seed).choice(special, (SIZE,) * 4) for seed in range(2)]
    got, expected = run_module(canonical(mod), *inputs)[0], run_module(mod, *inputs)[0]
    for after, before in zip(_places(got), _places(expected), strict=True):
        np.testing.assert_array_equal(after, before)
