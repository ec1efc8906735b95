"""Random nodes of reductions and products."""

from __future__ import annotations

import numpy as np

from tests.compiler.frontends.onnx.random_cases import (
    Generator,
    axis_of,
    broadcastable,
    full_shape,
    makes,
    pick,
    values,
)
from tests.compiler.frontends.onnx.support import Case

REDUCTIONS = tuple(
    f"Reduce{n}" for n in ("Sum", "Mean", "Prod", "Max", "Min", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")
)


@makes(*REDUCTIONS)
def _reduce(random: Generator, operator: str) -> Case:
    integer = operator in ("ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSumSquare", "ReduceL1")
    dtype = pick(random, "float32", "float64", *(["int32", "int64"] if integer else []))
    data_shape = full_shape(random, 0, 4)
    low, high = (0.1, 2) if operator == "ReduceLogSum" else (-2, 2)
    bound = 2 if operator == "ReduceProd" else 50
    data = np.asarray(np.clip(values(random, dtype, data_shape, low, high), -bound, bound), dtype)
    rank = len(data_shape)
    count = int(random.integers(0, rank + 1))
    axes = random.choice(rank, count, replace=False) if count else np.zeros(0, np.int64)
    axes = np.where(random.random(count) < 0.5, axes, axes - rank).astype(np.int64)
    inputs = [data] if count == 0 and random.random() < 0.5 else [data, axes]
    attributes = {"keepdims": int(random.integers(2)), "noop_with_empty_axes": int(random.integers(2))}
    return Case(operator, inputs, attributes, (1,) if len(inputs) > 1 else (), rtol=2e-5, atol=1e-5)


@makes("ArgMax", "ArgMin")
def _arg(random: Generator, operator: str) -> Case:
    data_shape = full_shape(random)
    data = values(random, pick(random, "float32", "int32", "int8", "uint8", "float64"), data_shape, -1, 1)
    attributes = {
        "axis": axis_of(random, len(data_shape)),
        "keepdims": int(random.integers(2)),
        "select_last_index": int(random.integers(2)),
    }
    return Case(operator, [data], attributes)


@makes("CumSum")
def _cumsum(random: Generator, operator: str) -> Case:
    data_shape = full_shape(random)
    axis = np.array(axis_of(random, len(data_shape)), pick(random, np.int32, np.int64))
    attributes = {"exclusive": int(random.integers(2)), "reverse": int(random.integers(2))}
    data = values(random, pick(random, "float32", "float64", "int32", "int64"), data_shape)
    return Case(operator, [data, axis], attributes, (1,))


@makes("Softmax", "LogSoftmax", "Hardmax")
def _softmax(random: Generator, operator: str) -> Case:
    data_shape, opset = full_shape(random), pick(random, 11, 13)
    axis = axis_of(random, len(data_shape))
    return Case(operator, [values(random, "float32", data_shape)], {"axis": axis}, opset=opset, rtol=2e-5, atol=1e-5)


@makes("MatMul")
def _matmul(random: Generator, operator: str) -> Case:
    dtype = pick(random, "float32", "float64", "int32", "int64", "float16")
    m, k, n = (int(v) for v in random.integers(1, 6, 3))
    stack = full_shape(random, 0, 2)
    left = (k,) if random.random() < 0.15 else (*broadcastable(random, stack), m, k)
    right = (k,) if random.random() < 0.15 else (*stack, k, n)
    a, b = (np.clip(values(random, dtype, s), -9, 9).astype(dtype) for s in (left, right))
    return Case(operator, [a, b], constants=pick(random, (), (1,)), rtol=1e-4, atol=1e-5)


@makes("Gemm")
def _gemm(random: Generator, operator: str) -> Case:
    m, k, n = (int(v) for v in random.integers(1, 6, 3))
    transposed = {"transA": int(random.integers(2)), "transB": int(random.integers(2))}
    a = values(random, "float32", (k, m) if transposed["transA"] else (m, k))
    b = values(random, "float32", (n, k) if transposed["transB"] else (k, n))
    bias = None if random.random() < 0.3 else values(random, "float32", pick(random, (), (n,), (m, 1), (1, n), (m, n)))
    scales = {"alpha": pick(random, 1.0, 0.5), "beta": pick(random, 1.0, 2.0)}
    return Case(operator, [a, b, bias], {**transposed, **scales}, rtol=1e-4, atol=1e-5)


@makes("Einsum")
def _einsum(random: Generator, operator: str) -> Case:
    equations = [
        "ij,jk->ik",
        "bij,bkj->bik",
        "ii->i",
        "ij->",
        "...i,...i->...",
        "bhid,bhjd->bhij",
        "i,j->ij",
        "ij,j",
        "ijk->kji",
    ]
    equation = pick(random, *equations, "a,ab,b->", "...ij,jk->...ik", "ab,ab->a", "bii->b")
    sizes = {label: int(random.integers(1, 5)) for label in "abcdhijk"}
    extra = full_shape(random, 0, 2)
    terms = equation.split("->")[0].split(",")
    shapes = [
        tuple(s for label in term.replace("...", ".") for s in (extra if label == "." else (sizes[label],)))
        for term in terms
    ]
    return Case(operator, [values(random, "float32", s) for s in shapes], {"equation": equation}, rtol=1e-4, atol=1e-5)


@makes("Det")
def _det(random: Generator, operator: str) -> Case:
    size = int(random.integers(1, 5))
    return Case(
        operator, [values(random, "float32", (*full_shape(random, 0, 2), size, size), -1, 1)], rtol=1e-4, atol=1e-5
    )
