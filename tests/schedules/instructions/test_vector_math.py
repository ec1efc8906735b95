"""Elementary functions: error over the whole range, special values, and no call in the machine code."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tvm import relax, te

from schedules.instructions.vector_math import EXP_OF_NEGATIVE, EXP_OF_NEGATIVE_COARSE, FUNCTIONS, call, definitions
from tests.schedules.harness import AVX2, AVX512, Array, assembly, evaluate, runnable, scheduled, target_of

op = relax.op
OPERATORS = {
    "exp": op.exp,
    "sigmoid": op.sigmoid,
    "tanh": op.tanh,
    "erf": op.erf,
    "log": op.log,
    "sin": op.sin,
    "cos": op.cos,
    "tan": op.tan,
    "asin": op.asin,
    "acos": op.acos,
    "atan": op.atan,
    "sinh": op.sinh,
    "cosh": op.cosh,
    "asinh": op.asinh,
    "acosh": op.acosh,
    "atanh": op.atanh,
}
REFERENCES: dict[str, Callable[[Array], Array]] = {
    "exp": np.exp,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "erf": np.vectorize(math.erf),
    "log": np.log,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
}
# The bounds that the module's table states.
BOUNDS = {
    "exp": 1.0,
    "sigmoid": 2.5,
    "tanh": 5.0,
    "erf": 6.0,
    "log": 1.0,
    "sin": 1.6,
    "cos": 1.6,
    "tan": 2.7,
    "asin": 2.5,
    "acos": 1.2,
    "atan": 2.4,
    "sinh": 1.7,
    "cosh": 1.4,
    "asinh": 3.9,
    "acosh": 2.4,
    "atanh": 1.5,
}
PERIODIC = ("sin", "cos", "tan")


def apply(name: str, x: Array, target: str) -> Array:
    return evaluate(lambda builder, value: builder.emit(OPERATORS[name](value)), [x], target)


def samples(name: str) -> Array:
    """Dense where the functions bend, and every magnitude of float32."""
    rng = np.random.default_rng(0)
    near = [rng.uniform(-scale, scale, 20000) for scale in (1e-3, 1.0, 12.0, 104.0)]
    magnitudes = np.exp2(rng.uniform(-149, 127, 40000)) * rng.choice([-1, 1], 40000)
    x = np.concatenate([*near, magnitudes]).astype("float32")
    if name in PERIODIC:  # some are beyond the reduction, among others that are not
        x = np.concatenate([rng.uniform(-(2.0**28), 2.0**28, 40000), x]).astype("float32")
        x[:40000:1000] = 1e30
    if name == "acosh":
        return np.where(np.abs(x) < 1, 1 + np.abs(x), np.abs(x))
    return np.abs(x) if name == "log" else x


@pytest.mark.parametrize("target", runnable())
@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_the_stated_error_bound_holds(name: str, target: str) -> None:
    x = samples(name)
    with np.errstate(all="ignore"):
        exact = REFERENCES[name](x.astype("float64"))
        rounded = exact.astype("float32")
    result = apply(name, x, target)
    finite = np.isfinite(rounded)
    np.testing.assert_array_equal(result[~finite], rounded[~finite])
    if name == "sigmoid":  # 0 stands for results below the normal range
        finite &= np.abs(rounded) >= np.finfo("float32").tiny
        assert (np.abs(result[~finite]) < np.finfo("float32").tiny).all()
    unit = np.spacing(np.abs(rounded[finite])).astype("float64")
    error = np.abs(result[finite] - exact[finite]) / unit
    assert error.max() <= BOUNDS[name], (x[finite][error.argmax()], error.max())


@pytest.mark.parametrize("target", runnable())
@pytest.mark.parametrize("lanes", [1, 4, 8])
@pytest.mark.parametrize("name", ["exp", "log", "sinh"])
def test_the_stated_error_bound_holds_in_short_vectors(name: str, lanes: int, target: str) -> None:
    """AVX-512 has other instructions for the exponents of each length; they are used at 1 lane too."""
    x = np.exp2(np.random.default_rng(1).uniform(-149, 6, lanes)).astype("float32")
    exact = REFERENCES[name](x.astype("float64"))
    error = np.abs(apply(name, x, target) - exact) / np.spacing(np.abs(exact).astype("float32"))
    assert error.max() <= BOUNDS[name]


@pytest.mark.parametrize("target", runnable())
def test_special_values(target: str) -> None:
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 3e38, -3e38], "float32")
    inf, nan = np.inf, np.nan
    expected = {
        "exp": [nan, inf, 0, 1, 1, inf, 0],
        "sigmoid": [nan, 1, 0, 0.5, 0.5, 1, 0],
        "tanh": [nan, 1, -1, 0, -0.0, 1, -1],
        "erf": [nan, 1, -1, 0, -0.0, 1, -1],
        "log": [nan, inf, nan, -inf, -inf, np.log(3e38), nan],
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(apply(name, x, target), np.array(values, "float32"), name)


@pytest.mark.parametrize("target", runnable())
def test_special_values_of_trigonometric_and_hyperbolic_functions(target: str) -> None:
    """Both ends of each domain, and the sign of zero."""
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 1, -1, 1.5, -1.5, 90, -90], "float32")
    names = sorted(REFERENCES.keys() - {"exp", "sigmoid", "tanh", "erf", "log"})

    def build(builder: Any, value: Any) -> Any:
        return builder.emit(op.stack([builder.emit(OPERATORS[name](value)) for name in names]))

    results = evaluate(build, [x], target)
    for name, result in zip(names, results, strict=True):
        with np.errstate(all="ignore"):
            exact = REFERENCES[name](x.astype("float64")).astype("float32")
        np.testing.assert_allclose(result, exact, rtol=5e-7, atol=0, err_msg=name)
        zero = exact == 0
        np.testing.assert_array_equal(np.signbit(result[zero]), np.signbit(exact[zero]), name)


@pytest.mark.parametrize("target", runnable())
def test_powers(target: str) -> None:
    """Every pair of the special values, whole powers, and results over the whole range."""
    inf, nan, tiny = np.inf, np.nan, 1e-40
    special = np.array(
        [0, -0.0, 1, -1, 0.5, -0.5, 2, -3, 1.5, inf, -inf, nan, tiny, -tiny, 2**24 - 1, 1 - 2**24, -3e38]
    )
    rng = np.random.default_rng(0)
    bases = [np.repeat(special, len(special)), rng.integers(-9, 10, 5000), np.exp2(rng.uniform(-149, 127.9, 20000))]
    exponents = [np.tile(special, len(special)), rng.integers(0, 7, 5000), rng.standard_normal(20000)]
    x, y = np.concatenate(bases).astype("float32"), np.concatenate(exponents).astype("float32")
    result = evaluate(lambda builder, *values: builder.emit(op.power(*values)), [x, y], target)
    with np.errstate(all="ignore"):
        exact = np.power(x.astype("float64"), y.astype("float64"))
        rounded = exact.astype("float32")
    finite = np.isfinite(rounded)
    np.testing.assert_array_equal(result[~finite], rounded[~finite])
    number = ~np.isnan(rounded)
    np.testing.assert_array_equal(np.signbit(result[number]), np.signbit(rounded[number]))
    whole = slice(len(bases[0]), len(bases[0]) + len(bases[1]))
    np.testing.assert_array_equal(result[whole], rounded[whole])
    error = np.abs(result[finite] - exact[finite]) / np.spacing(np.abs(rounded[finite])).astype("float64")
    normal = np.abs(rounded[finite]) >= np.finfo("float32").tiny
    assert error[normal].max() <= 0.51
    assert error.max() <= 1


# (largest relative error, in units of the last place of float32 or as it is)
OF_NEGATIVE = {EXP_OF_NEGATIVE: 2.0**-23, EXP_OF_NEGATIVE_COARSE: 8e-5}


@pytest.mark.parametrize("target", runnable())
@pytest.mark.parametrize("name", sorted(OF_NEGATIVE))
def test_powers_of_negative_numbers(name: str, target: str) -> None:
    x = -np.abs(samples("exp"))

    def power(builder: Any, value: Any) -> Any:
        return builder.emit(builder.call_te(lambda t: te.compute(t.shape, lambda i: call(name, t(i))), value))

    result = evaluate(power, [x], target)
    exact = np.exp(x.astype("float64"))
    normal = x > -87
    error = np.abs(result[normal] - exact[normal]) / exact[normal]
    assert error.max() <= OF_NEGATIVE[name], (x[normal][error.argmax()], error.max())
    assert (np.abs(result[~normal] - exact[~normal]) < 2e-38).all()
    special = np.array([np.nan, -np.inf, 0.0, -0.0, -3e38], "float32")
    first = 1 if name == EXP_OF_NEGATIVE else evaluate(power, [np.zeros(1, "float32")], target)[0]
    np.testing.assert_array_equal(evaluate(power, [special], target), np.array([np.nan, 0, first, first, 0], "float32"))


@pytest.mark.parametrize("target", runnable())
def test_half_precision_is_rounded_once(target: str) -> None:
    x = np.linspace(-8, 8, 999).astype("float16")
    exact = np.tanh(x.astype("float64")).astype("float16")
    result = apply("tanh", x, target)
    difference = np.abs(result.view("int16").astype(int) - exact.view("int16"))
    assert difference.max() <= 1
    assert (difference == 0).mean() > 0.99


@pytest.mark.parametrize(("target", "register"), [(AVX2, "%ymm"), (AVX512, "%zmm")])
@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_machine_code_holds_no_calls(name: str, target: str, register: str) -> None:
    mod, _ = scheduled(lambda builder, x: builder.emit(OPERATORS[name](x)), [((64, 48), "float32")], target)
    code = assembly(mod, target)
    assert register in code
    # Beyond the reduction sine, cosine and tangent take the library's, from one place out of the way.
    assert code.count(f"callq\t{name}f") == (name in PERIODIC)
    assert "callq\ttensorwright_" not in code


@pytest.mark.parametrize("target", [AVX2, AVX512])
def test_every_function_has_a_definition_for_any_number_of_lanes(target: str) -> None:
    text = definitions(FUNCTIONS, [1, 3, 16], target_of(target).machine)
    assert text.count("define ") == 3 * len(FUNCTIONS)
    assert "<3 x float> @tensorwright_exp_f32x3(<3 x float> %x)" in text


@pytest.mark.parametrize("target", runnable())
def test_functions_beside_a_tile_of_sums(target: str) -> None:
    """Their constants come from memory; among the sums some are beyond the reduction of sines."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((16, 64)).astype("float32"), rng.standard_normal((64, 64)).astype("float32")
    x[3] *= 1e12

    def build(builder: Any, x: Any, w: Any) -> Any:
        product = builder.emit(op.matmul(x, w))
        return builder.emit(op.add(op.sin(product), op.multiply(op.asinh(product), op.atan(product))))

    result = evaluate(build, [x, w], target)
    product = evaluate(lambda builder, *values: builder.emit(op.matmul(*values)), [x, w], target).astype("float64")
    exact = np.sin(product) + np.arcsinh(product) * np.arctan(product)
    np.testing.assert_allclose(result, exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("target", "register"), [(AVX2, "%ymm"), (AVX512, "%zmm")])
def test_a_dear_epilogue_leaves_the_sums_in_registers(target: str, register: str) -> None:
    """The innermost loop of a product with GELU behind it neither loads nor stores the stack."""

    def build(builder: Any, x: Any, w: Any) -> Any:
        return builder.emit(op.nn.gelu(builder.emit(op.matmul(x, w))))

    mod, _ = scheduled(build, [((64, 256), "float32"), ((256, 64), "float32")], target)
    loops = innermost_loops(assembly(mod, target))
    product = max(loops, key=lambda body: sum("vfmadd" in line for line in body if register in line))
    assert sum("vfmadd" in line for line in product) >= 12
    assert not [line for line in product if register in line and "rsp)" in line]


def innermost_loops(code: str) -> list[list[str]]:
    """The lines of each loop that holds no other: from a label to the first jump back to it."""
    lines = code.splitlines()
    labels: dict[str, int] = {}
    loops: list[tuple[int, int]] = []
    for number, line in enumerate(lines):
        if label := re.match(r"(\.LBB\w+):", line):
            labels[label.group(1)] = number
        elif (jump := re.match(r"\s+j\w+\s+(\.LBB\w+)", line)) and jump.group(1) in labels:
            loops.append((labels[jump.group(1)], number))
    inner = [a for a in loops if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    return [lines[start:end] for start, end in inner]
