"""Random nodes of elementwise operators."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.compiler.frontends.onnx.random_cases import (
    FLOATS,
    INTEGERS,
    Generator,
    broadcastable,
    full_shape,
    makes,
    pick,
    shape,
    values,
)
from tests.compiler.frontends.onnx.support import Case


@makes("Abs", "Neg", "Sign")
def _signed(random: Generator, operator: str) -> Case:
    dtype = pick(random, *FLOATS, *(d for d in INTEGERS if operator != "Neg" or not d.startswith("u")))
    return Case(operator, [values(random, dtype, shape(random))])


@makes(
    *("Ceil", "Floor", "Round", "Exp", "Sqrt", "Sigmoid", "Tanh", "Sin", "Cos", "Tan", "Asin", "Acos", "Atan", "Sinh"),
    *(
        "Cosh",
        "Asinh",
        "Acosh",
        "Atanh",
        "Erf",
        "Log",
        "Reciprocal",
        "Relu",
        "Softplus",
        "Softsign",
        "HardSwish",
        "Mish",
    ),
)
def _float_unary(random: Generator, operator: str) -> Case:
    low, high = {
        "Asin": (-1, 1),
        "Acos": (-1, 1),
        "Atanh": (-0.9, 0.9),
        "Acosh": (1, 5),
        "Log": (0.01, 9),
        "Sqrt": (0, 9),
    }.get(operator, (-4, 4))
    # TVM's float32 tanh is a rational approximation, right to 1e-4 of small values.
    loose = operator in ("Tanh", "Mish")
    return Case(
        operator, [values(random, pick(random, *FLOATS), shape(random), low, high)], rtol=2e-4 if loose else 2e-5
    )


@makes("Elu", "LeakyRelu", "Celu", "ThresholdedRelu")
def _alpha(random: Generator, operator: str) -> Case:
    alpha = float(pick(random, 0.25, 1.0, 2.0))
    return Case(operator, [values(random, "float32", shape(random))], {"alpha": alpha}, rtol=2e-5)


@makes("Selu", "HardSigmoid", "Shrink", "Gelu", "Swish")
def _with_attributes(random: Generator, operator: str) -> Case:
    attributes: dict[str, Any] = {
        "Selu": {"alpha": 1.5, "gamma": 1.1},
        "HardSigmoid": {"alpha": 0.3, "beta": 0.4},
        "Shrink": {"lambd": 1.0, "bias": 0.5},
        "Gelu": {"approximate": pick(random, "none", "tanh")},
        "Swish": {"alpha": 1.5},
    }[operator]
    opset = 24 if operator == "Swish" else 22
    return Case(operator, [values(random, "float32", shape(random))], attributes, opset=opset, rtol=2e-4)


@makes("Add", "Sub", "Mul", "Max", "Min", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Mod", "Div")
def _binary(random: Generator, operator: str) -> Case:
    kinds = INTEGERS if operator.startswith("Bitwise") or operator == "Mod" else (*INTEGERS, *FLOATS)
    dtype, target = pick(random, *kinds), shape(random)
    pair = [values(random, dtype, broadcastable(random, target)), values(random, dtype, target)]
    if random.random() < 0.5:
        pair.reverse()
    if operator in ("Div", "Mod"):
        pair[1] = np.where(pair[1] == 0, 1, pair[1]).astype(dtype)
        if dtype.startswith("int"):
            # The one quotient that overflows differs between processors.
            pair[0] = np.where(pair[0] == np.iinfo(dtype).min, 0, pair[0]).astype(dtype)
    attributes = {"fmod": int(random.integers(2))} if operator == "Mod" else {}
    return Case(operator, pair, attributes, pick(random, (), (0,), (1,)))


@makes("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")
def _comparison(random: Generator, operator: str) -> Case:
    dtype = pick(random, *INTEGERS, *FLOATS, *(["bool"] if operator == "Equal" else []))
    target = shape(random)
    return Case(
        operator, [values(random, dtype, broadcastable(random, target), -1, 1), values(random, dtype, target, -1, 1)]
    )


@makes("And", "Or", "Xor")
def _logic(random: Generator, operator: str) -> Case:
    target = shape(random)
    return Case(operator, [values(random, "bool", target), values(random, "bool", broadcastable(random, target))])


@makes("Pow")
def _pow(random: Generator, operator: str) -> Case:
    base, exponent = pick(random, "float32", "float64", "int32", "int64"), pick(random, "float32", "int32", "int64")
    target = shape(random)
    x = np.asarray(np.abs(values(random, base, target)).clip(0, 9), base)
    y = np.asarray(np.abs(values(random, exponent, broadcastable(random, target))).clip(0, 5), exponent)
    return Case(operator, [x, y], constants=pick(random, (), (1,)), rtol=2e-5)


@makes("BitShift")
def _bit_shift(random: Generator, operator: str) -> Case:
    dtype, target = pick(random, "uint8", "uint16", "uint32", "uint64"), shape(random)
    amount = np.asarray(random.integers(0, 8, broadcastable(random, target)), dtype)
    return Case(operator, [values(random, dtype, target), amount], {"direction": pick(random, "LEFT", "RIGHT")})


@makes("Where")
def _where(random: Generator, operator: str) -> Case:
    dtype, target = pick(random, "float32", "int64", "uint8", "int32"), shape(random)
    condition = values(random, "bool", broadcastable(random, target))
    return Case(
        operator, [condition, values(random, dtype, broadcastable(random, target)), values(random, dtype, target)]
    )


@makes("Clip")
def _clip(random: Generator, operator: str) -> Case:
    dtype = pick(random, "float32", "float64", "int8", "uint8", "int32", "int64", "uint32")
    low = None if random.random() < 0.3 else np.array(pick(random, 0, 1), dtype)
    high = None if random.random() < 0.3 else np.array(pick(random, 2, 5), dtype)
    return Case(operator, [values(random, dtype, shape(random)), low, high], constants=pick(random, (), (1, 2)))


@makes("Cast")
def _cast(random: Generator, operator: str) -> Case:
    import onnx.helper

    source, target = pick(random, *INTEGERS, *FLOATS, "bool"), pick(random, *INTEGERS, *FLOATS, "bool")
    x = values(random, source, shape(random), 0 if target.startswith("u") else -4, 4)
    if source.startswith(("int", "uint")) and target == "float16":
        x = np.where((x > 60000) | ((x < 0) & (x < np.array(-60000).astype(np.int64))), 0, x).astype(source)
    return Case(operator, [x], {"to": onnx.helper.np_dtype_to_tensor_dtype(np.dtype(target))})


@makes("IsNaN", "IsInf")
def _special(random: Generator, operator: str) -> Case:
    data = values(random, pick(random, "float32", "float64"), full_shape(random))
    data.reshape(-1)[:: int(random.integers(1, 4))] = pick(random, np.nan, np.inf, -np.inf)
    flags = {"detect_positive": int(random.integers(2)), "detect_negative": int(random.integers(2))}
    return Case(operator, [data], flags if operator == "IsInf" else {})


@makes("Sum", "Mean")
def _variadic(random: Generator, operator: str) -> Case:
    target = shape(random)
    arrays = [values(random, "float32", broadcastable(random, target)) for _ in range(int(random.integers(1, 4)))]
    return Case(operator, [values(random, "float32", target), *arrays], rtol=2e-5, atol=1e-5)


@makes("PRelu")
def _prelu(random: Generator, operator: str) -> Case:
    target = shape(random)
    return Case(operator, [values(random, "float32", target), values(random, "float32", broadcastable(random, target))])
