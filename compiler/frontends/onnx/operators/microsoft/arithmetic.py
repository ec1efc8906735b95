"""com.microsoft: products and sums of integers and complex numbers, and other small operators."""

from __future__ import annotations

import numpy as np

from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.composition import Composer, composed, int64s
from compiler.frontends.onnx.operators.microsoft.fused import DOMAIN, fast_gelu
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.values import TensorValue


@composed("GemmFastGelu", domain=DOMAIN)
def gemm_fast_gelu(op: Composer, x: TensorValue, w: TensorValue, bias: TensorValue | None = None) -> TensorValue:
    """FastGelu of a product and a bias."""
    return fast_gelu(op, op("MatMul", x, w), bias)


@composed("MatMulInteger16", domain=DOMAIN)
def matmul_integer_16(op: Composer, a: TensorValue, b: TensorValue) -> TensorValue:
    """Product of 16-bit integers, of 32 bits."""
    wide = _wide(op, a, b)
    return op("MatMul", *(op("Cast", each, to=wide) for each in (a, b)))


@converter("MulInteger", domain=DOMAIN)
def mul_integer(context: NodeContext) -> TensorValue:
    """(A - its zero point) * (B - its zero point), of 32 bits; each zero point follows its operand."""
    op, factors = Composer(context), []
    for index in (0, 2):
        factor = op("Cast", context.value(index), to=op.number("int32"))
        if context.has_input(index + 1):
            factor = op("Sub", factor, op("Cast", context.value(index + 1), to=op.number("int32")))
        factors.append(factor)
    return op("Mul", *factors)


@composed("ReduceSumInteger", domain=DOMAIN)
def reduce_sum_integer(op: Composer, x: TensorValue, *, axes: list[int], keepdims: int) -> TensorValue:
    """Sum of 8-bit integers, of 32 bits."""
    return op("ReduceSum", op("Cast", x, to=_wide(op, x)), int64s(*axes), keepdims=keepdims)


def _wide(op: Composer, *operands: TensorValue) -> int:
    """Return the number of the 32-bit type of the operands' results."""
    return op.number("uint32" if all(each.dtype.startswith("uint") for each in operands) else "int32")


@composed("ComplexMul", domain=DOMAIN)
def complex_mul(op: Composer, a: TensorValue, b: TensorValue) -> TensorValue:
    """Products of complex numbers, whose real and imaginary parts are the last axis."""
    return _complex_product(op, a, b, 1.0)


@composed("ComplexMulConj", domain=DOMAIN)
def complex_mul_conjugate(op: Composer, a: TensorValue, b: TensorValue) -> TensorValue:
    """Products with the conjugates of b."""
    return _complex_product(op, a, b, -1.0)


def _complex_product(op: Composer, a: TensorValue, b: TensorValue, sign: float) -> TensorValue:
    (a_real, a_imaginary), (b_real, b_imaginary) = (
        op.outputs(2, "Split", each, axis=-1, num_outputs=2) for each in (a, b)
    )
    b_imaginary = op("Mul", b_imaginary, sign)
    real = op("Sub", op("Mul", a_real, b_real), op("Mul", a_imaginary, b_imaginary))
    imaginary = op("Add", op("Mul", a_real, b_imaginary), op("Mul", a_imaginary, b_real))
    return op("Concat", real, imaginary, axis=-1)


@composed("UnfoldTensor", domain=DOMAIN)
def unfold_tensor(op: Composer, x: TensorValue, *, size: int, dim: int = -1, step: int = 1) -> TensorValue:
    """Windows of an axis, as `Tensor.unfold` of PyTorch: their positions are a new last axis."""
    rank = len(x.shape)
    axis = op.context.axis(dim, rank)
    if size < 1 or step < 1:
        op.context.invalid(f"size and step must be at least 1, not {size} and {step}")
    length = op("Squeeze", op("Slice", op("Shape", x), int64s(axis), int64s(axis + 1)))
    starts = op("Range", np.int64(0), op("Sub", length, np.int64(size - 1)), np.int64(step))
    windows = op("Gather", x, op("Add", op("Unsqueeze", starts, int64s(1)), np.arange(size)), axis=axis)
    return op("Transpose", windows, perm=[*range(axis + 1), *range(axis + 2, rank + 1), axis + 1])
