"""recognize-layer-norm and recognize-rms-norm: the forms that exporters write, and those that must stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax

from compiler.passes.rewriting.matching import as_constant
from tests.compiler.passes.building import Build, apply, operators, run_module

op = relax.op
EPSILON = 1e-5


def number(value: float, dtype: str = "float32") -> Any:
    return as_constant(np.array(value, dtype))


def inverse_roots(build: Build) -> list[tuple[str, Callable[[Any, Any], Any]]]:
    emit = build.emit
    return [
        ("divide", lambda x, v: emit(op.divide(x, emit(op.sqrt(v))))),
        ("rsqrt", lambda x, v: emit(op.multiply(emit(op.rsqrt(v)), x))),
        ("one over", lambda x, v: emit(op.multiply(x, emit(op.divide(number(1), emit(op.sqrt(v))))))),
        ("power", lambda x, v: emit(op.multiply(x, emit(op.power(v, number(-0.5)))))),
    ]


def centered_squares(build: Build, x: Any, how: str) -> tuple[Any, Any]:
    """(x - mean, variance) over the last axis, written in one of several ways."""
    emit = build.emit
    mean = emit(op.mean(x, [-1], True))
    centered = emit(op.subtract(x, mean))
    if how == "variance":
        return centered, emit(op.variance(x, [-1], True))
    if how == "sum":
        total = emit(op.sum(emit(op.multiply(centered, centered)), [-1], True))
        return centered, emit(op.divide(total, number(float(int(x.ty.shape[-1])))))
    if how == "twice":
        again = emit(op.subtract(x, emit(op.mean(x, [-1], True))))
        return centered, emit(op.mean(emit(op.power(again, number(2))), [-1], True))
    square = {"power": lambda: op.power(centered, number(2)), "multiply": lambda: op.multiply(centered, centered)}
    return centered, emit(op.mean(emit(square.get(how, lambda: op.square(centered))()), [-1], True))


@pytest.mark.parametrize("how", ["power", "multiply", "square", "variance", "sum", "twice"])
@pytest.mark.parametrize("root", range(4))
def test_layer_norm_in_every_spelling(how: str, root: int) -> None:
    build = Build()
    x = build.input("x", (3, 12))
    centered, variance = centered_squares(build, x, how)
    shifted = build.emit(op.add(variance, number(EPSILON)))
    value = inverse_roots(build)[root][1](centered, shifted)
    gamma, beta = build.constant((1, 12)), build.constant((12,))
    value = build.emit(op.add(beta, build.emit(op.multiply(value, gamma))))
    after = apply("recognize-layer-norm", apply("simplify-algebra", build.module(value)))
    assert operators(after) == ["nn.layer_norm"]
    data = np.random.default_rng(2).standard_normal((3, 12)) * 3 + 50
    expected = (data - data.mean(-1, keepdims=True)) / np.sqrt(data.var(-1, keepdims=True) + EPSILON)
    expected = expected * gamma.value.numpy() + beta.value.numpy()
    # Data near 50 in float32 is known to 4e-6, its deviation of 3 to about 1e-6.
    np.testing.assert_allclose(run_module(after, data.astype("float32"))[0], expected, atol=2e-5)


@pytest.mark.parametrize("root", range(4))
def test_rms_norm_in_every_spelling(root: int) -> None:
    build = Build()
    x = build.input("x", ("n", 4, 12))
    mean = build.emit(op.mean(build.emit(op.multiply(x, x)), [-1], True))
    value = inverse_roots(build)[root][1](x, build.emit(op.add(number(EPSILON), mean)))
    weight = build.constant((12,))
    value = build.emit(op.multiply(weight, value))
    after = apply("recognize-rms-norm", apply("simplify-algebra", build.module(value)))
    assert operators(after) == ["nn.rms_norm"]
    data = np.random.default_rng(2).standard_normal((3, 4, 12))
    expected = data / np.sqrt((data**2).mean(-1, keepdims=True) + EPSILON) * weight.value.numpy()
    np.testing.assert_allclose(run_module(after, data.astype("float32"))[0], expected, rtol=1e-5, atol=1e-6)


def test_the_scale_may_be_multiplied_into_the_inverse_root() -> None:
    build = Build()
    x = build.input("x", (3, 12))
    centered, variance = centered_squares(build, x, "multiply")
    inverse = build.emit(op.rsqrt(build.emit(op.add(variance, number(EPSILON)))))
    scaled = build.emit(op.multiply(inverse, build.constant((12,))))
    mod = build.module(build.emit(op.multiply(centered, scaled)))
    after = apply("recognize-layer-norm", mod)
    assert operators(after) == ["nn.layer_norm"]
    data = np.random.default_rng(2).standard_normal((3, 12)).astype("float32")
    np.testing.assert_allclose(run_module(after, data)[0], run_module(mod, data)[0], rtol=1e-5, atol=1e-6)


def layer_norm_parts(build: Build, *, axis: int = -1) -> dict[str, Any]:
    x = build.input("x", (3, 12))
    emit = build.emit
    parts = {"mean": emit(op.mean(x, [-1], True))}
    parts["centered"] = emit(op.subtract(x, parts["mean"]))
    parts["square"] = emit(op.multiply(parts["centered"], parts["centered"]))
    parts["variance"] = emit(op.mean(parts["square"], [axis], True))
    parts["shifted"] = emit(op.add(parts["variance"], number(EPSILON)))
    parts["root"] = emit(op.sqrt(parts["shifted"]))
    parts["result"] = emit(op.divide(parts["centered"], parts["root"]))
    return parts


@pytest.mark.parametrize("shared", ["centered", "square", "variance", "shifted", "root"])
def test_a_part_with_another_consumer_keeps_a_layer_norm_apart(shared: str) -> None:
    build = Build()
    parts = layer_norm_parts(build)
    mod = build.module(parts["result"], build.emit(op.exp(parts[shared])))
    assert apply("recognize-layer-norm", mod).same_as(mod)


def test_a_result_with_two_consumers_keeps_its_scale_apart() -> None:
    build = Build()
    result = layer_norm_parts(build)["result"]
    mod = build.module(build.emit(op.multiply(result, build.constant((12,)))), result)
    assert operators(apply("recognize-layer-norm", mod)) == ["nn.layer_norm", "multiply"]


def test_what_is_not_a_normalization_stays() -> None:
    build = Build()
    mod = build.module(layer_norm_parts(build, axis=0)["result"])  # variance over another axis
    assert apply("recognize-layer-norm", mod).same_as(mod)
    build = Build()
    x, y = build.input("x", (3, 12)), build.input("y", (3, 12))
    mean = build.emit(op.mean(build.emit(op.multiply(x, x)), [-1], True))
    root = build.emit(op.sqrt(build.emit(op.add(mean, number(EPSILON)))))
    mod = build.module(build.emit(op.divide(y, root)))  # another numerator
    assert apply("recognize-rms-norm", mod).same_as(mod)


@settings(max_examples=4, deadline=None)
@given(rows=st.integers(1, 5), columns=st.integers(1, 17), both=st.booleans())
def test_layer_norm_on_random_shapes(rows: int, columns: int, both: bool) -> None:
    build = Build()
    x = build.input("x", (2, rows, columns))
    axes = [-2, -1] if both else [-1]
    emit = build.emit
    centered = emit(op.subtract(x, emit(op.mean(x, axes, True))))
    variance = emit(op.mean(emit(op.multiply(centered, centered)), axes, True))
    root = emit(op.sqrt(emit(op.add(variance, number(0.1)))))
    mod = build.module(emit(op.divide(centered, root)))
    after = apply("recognize-layer-norm", mod)
    assert operators(after) == ["nn.layer_norm"]
    data = np.random.default_rng(rows).standard_normal((2, rows, columns))
    along = tuple(axes)
    expected = (data - data.mean(along, keepdims=True)) / np.sqrt(data.var(along, keepdims=True) + 0.1)
    np.testing.assert_allclose(run_module(after, data.astype("float32"))[0], expected, atol=1e-5)
