# mypy: disable-error-code="valid-type, no-untyped-def"
# ruff: noqa: N805
"""recognize-gelu and recognize-silu: all ways to write them, and similar expressions that are different."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from compiler.passes.canonicalize.recognize_activations import gelu, gelu_tanh, sigmoid, silu
from compiler.passes.rewriting.matching import as_constant
from tests.compiler.passes.building import Build, apply, operators, run_module

op = relax.op
Step = Callable[..., Any]


class Arithmetic:
    """Shorthand for arithmetic with numbers."""

    def __init__(self, build: Build, dtype: str = "float32") -> None:
        self._build, self._dtype = build, dtype

    def __getattr__(self, name: str) -> Step:
        def call(*operands: Any) -> Any:
            values = [as_constant(np.array(o, self._dtype)) if isinstance(o, float | int) else o for o in operands]
            return self._build.emit(getattr(op, name)(*values))

        return call


def cube(a: Arithmetic, x: Any) -> Any:
    return a.multiply(x, a.multiply(x, x))


C = math.sqrt(2 / math.pi)
GELU: list[Callable[[Arithmetic, Any], Any]] = [
    lambda a, x: a.multiply(a.multiply(x, 0.5), a.add(a.erf(a.divide(x, math.sqrt(2))), 1.0)),
    lambda a, x: a.multiply(0.5, a.multiply(x, a.add(1.0, a.erf(a.multiply(0.70710678, x))))),
    lambda a, x: a.multiply(a.multiply(a.add(a.erf(a.divide(x, math.sqrt(2))), 1.0), x), 0.5),
    lambda a, x: a.multiply(x, a.add(0.5, a.multiply(0.5, a.erf(a.divide(x, math.sqrt(2)))))),
    lambda a, x: a.divide(a.add(x, a.multiply(x, a.erf(a.divide(x, math.sqrt(2))))), 2.0),
    lambda a, x: a.add(a.multiply(0.5, x), a.multiply(a.multiply(0.5, x), a.erf(a.divide(x, math.sqrt(2))))),
]
GELU_TANH: list[Callable[[Arithmetic, Any], Any]] = [
    lambda a, x: a.multiply(
        a.multiply(0.5, x), a.add(1.0, a.tanh(a.multiply(C, a.add(x, a.multiply(0.044715, cube(a, x))))))
    ),
    lambda a, x: a.multiply(
        a.add(a.tanh(a.multiply(a.add(x, a.multiply(a.power(x, 3.0), 0.044715)), C)), 1.0), a.multiply(x, 0.5)
    ),
    lambda a, x: a.multiply(
        0.5,
        a.multiply(
            x,
            a.add(1.0, a.tanh(a.multiply(a.multiply(x, C), a.add(1.0, a.multiply(0.044715, a.multiply(x, x)))))),
        ),
    ),
]
SILU: list[Callable[[Arithmetic, Any], Any]] = [
    lambda a, x: a.multiply(x, a.sigmoid(x)),
    lambda a, x: a.multiply(a.sigmoid(x), x),
    lambda a, x: a.divide(x, a.add(1.0, a.exp(a.negative(x)))),
    lambda a, x: a.multiply(x, a.divide(1.0, a.add(a.exp(a.multiply(x, -1.0)), 1.0))),
]
SIGMOID: list[Callable[[Arithmetic, Any], Any]] = [
    lambda a, x: a.divide(1.0, a.add(1.0, a.exp(a.negative(x)))),
    lambda a, x: a.multiply(0.5, a.add(1.0, a.tanh(a.multiply(0.5, x)))),
]
CASES = [
    (name, operator, reference, spell)
    for name, operator, reference, spells in (
        ("recognize-gelu", "nn.gelu", gelu, GELU),
        ("recognize-gelu", "nn.gelu_tanh", gelu_tanh, GELU_TANH),
        ("recognize-silu", "nn.silu", silu, SILU),
        ("recognize-silu", "sigmoid", sigmoid, SIGMOID),
    )
    for spell in spells
]


@pytest.mark.parametrize(("name", "operator", "reference", "spell"), CASES)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_spelling_becomes_one_operator(
    name: str, operator: str, reference: Any, spell: Callable[[Arithmetic, Any], Any], dtype: str
) -> None:
    build = Build()
    x = build.input("x", ("n", 6), dtype)
    bias = build.emit(op.add(x, build.constant((6,), dtype)))  # arithmetic before it is not part of it
    scaled = build.emit(op.multiply(bias, as_constant(np.array(2, dtype))))
    mod = build.module(spell(Arithmetic(build, dtype), scaled))
    after = apply(name, mod)
    assert operators(after) == ["add", "multiply", operator]
    if dtype == "float32":
        data = np.random.default_rng(1).standard_normal((5, 6)).astype(dtype)
        bare = Build()
        y = bare.input("x", (5, 6))
        one = apply(name, bare.module(spell(Arithmetic(bare), y)))
        assert operators(one) == [operator]
        # Rounding of float32 arithmetic on numbers of magnitude 1.
        np.testing.assert_allclose(run_module(one, data)[0], reference(data.astype("float64")), atol=1e-6)


NOT: list[tuple[str, Callable[[Arithmetic, Any], Any]]] = [
    ("another factor", lambda a, x: a.multiply(a.multiply(x, 0.51), a.add(a.erf(a.divide(x, 1.41421356)), 1.0))),
    ("another scale", lambda a, x: a.multiply(a.multiply(x, 0.5), a.add(a.erf(a.divide(x, 1.4)), 1.0))),
    ("quick gelu", lambda a, x: a.multiply(x, a.sigmoid(a.multiply(x, 1.702)))),
    ("square", lambda a, x: a.multiply(a.exp(x), a.exp(x))),
]


@pytest.mark.parametrize("spell", [case[1] for case in NOT], ids=[case[0] for case in NOT])
def test_what_is_something_else_stays(spell: Callable[[Arithmetic, Any], Any]) -> None:
    build = Build()
    mod = build.module(spell(Arithmetic(build), build.input("x", (3, 6))))
    for name in ("recognize-gelu", "recognize-silu"):
        assert apply(name, mod).same_as(mod)


def test_a_part_with_another_consumer_stays() -> None:
    build = Build()
    x = build.input("x", (3, 6))
    a = Arithmetic(build)
    error = a.erf(a.divide(x, math.sqrt(2)))
    mod = build.module(a.multiply(a.multiply(x, 0.5), a.add(error, 1.0)), error)
    assert apply("recognize-gelu", mod).same_as(mod)
    build = Build()
    x = build.input("x", (3, 6))
    gate = build.emit(op.sigmoid(x))
    mod = build.module(build.emit(op.multiply(x, gate)), gate)
    assert apply("recognize-silu", mod).same_as(mod)


def test_two_different_operands_stay() -> None:
    build = Build()
    x, y = build.input("x", (3, 6)), build.input("y", (3, 6))
    mod = build.module(build.emit(op.multiply(x, build.emit(op.sigmoid(y)))))
    assert apply("recognize-silu", mod).same_as(mod)


def test_before_and_expected_in_a_branch() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor(("n", 6), "float32"), c: R.Tensor((), "bool")) -> R.Tensor(("n", 6), "float32"):
            if c:
                g = R.sigmoid(x)
                y = R.multiply(x, g)
                r = y
            else:
                r = x
            return r

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor(("n", 6), "float32"), c: R.Tensor((), "bool")) -> R.Tensor(("n", 6), "float32"):
            if c:
                y = R.nn.silu(x)
                r = y
            else:
                r = x
            return r

    tvm.ir.assert_structural_equal(apply("recognize-silu", Before), Expected)
