"""Random numbers: hashes of each element's position and a seed, so that runs are stateless and reproducible.

The attribute `seed` determines the numbers; without it, the node's name does. They differ from other runtimes', and
are the same in every run. The hash is MurmurHash3's 32-bit finalizer, applied twice with different keys.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import TypeAlias

from tvm import relax, te, tirx
from tvm.relax import op as R

from compiler.frontends.onnx import dtypes
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.node_names import node_name
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.symbolic import Dim, expression
from schedules.ir.tvm_types import Expr

Distribution: TypeAlias = "Callable[[Expr, Expr], Expr]"  # from two independent uniform float32 numbers in [0, 1)


@converter("RandomUniform", "RandomUniformLike")
def random_uniform(context: NodeContext) -> relax.Expr:
    """Uniform numbers in [low, high)."""
    low, high = float(context.attribute("low", 0.0)), float(context.attribute("high", 1.0))
    return _drawn(context, *_shape_and_type(context), lambda u, _: low + (high - low) * u)


@converter("RandomNormal", "RandomNormalLike")
def random_normal(context: NodeContext) -> relax.Expr:
    """Normal numbers by the Box-Muller transform."""
    mean, scale = float(context.attribute("mean", 0.0)), float(context.attribute("scale", 1.0))

    def normal(u: Expr, v: Expr) -> Expr:
        radius = tirx.sqrt(tirx.const(-2.0, "float32") * tirx.log(tirx.const(1.0, "float32") - u))
        return mean + scale * radius * tirx.cos(tirx.const(2 * math.pi, "float32") * v)

    return _drawn(context, *_shape_and_type(context), normal)


@converter("Bernoulli")
def bernoulli(context: NodeContext) -> relax.Expr:
    """1 with the probability given by the input, otherwise 0."""
    number = context.attribute("dtype", 0)
    target = _type(context, number) if number else context.dtype(0)
    chances = context.emit(R.astype(context.input(0), "float32"))
    drawn = _drawn(context, context.shape(0), "float32", lambda u, _: u)
    return R.astype(context.emit(R.less(drawn, chances)), target)


@converter("Multinomial")
def multinomial(context: NodeContext) -> relax.Expr:
    """Draw classes with the probabilities whose logarithms are the input: (batch, sample_size).

    The argmax of log(p) - log(-log(u)) over the classes has the required distribution (Gumbel-max trick).
    """
    batch, classes = context.shape(0)
    samples = int(context.attribute("sample_size", 1))
    target = _type(context, context.attribute("dtype", 6))

    def noise(u: Expr, _: Expr) -> Expr:
        one = tirx.const(1.0, "float32")
        # Strictly between 0 and 1.
        inside = u * tirx.const(1 - 2.0**-23, "float32") + tirx.const(2.0**-25, "float32")
        return tirx.const(0.0, "float32") - tirx.log(tirx.const(0.0, "float32") - tirx.log(inside)) * one

    drawn = _drawn(context, [batch, samples, classes], "float32", noise)
    chances = context.emit(R.expand_dims(context.emit(R.astype(context.input(0), "float32")), [1]))
    chosen = context.emit(R.argmax(context.emit(R.add(drawn, chances)), axis=2))
    return R.astype(chosen, target)


def _shape_and_type(context: NodeContext) -> tuple[Sequence[Dim], str]:
    number = context.attribute("dtype", 0)
    if context.operator.endswith("Like"):
        return context.shape(0), _type(context, number) if number else context.dtype(0)
    return [int(size) for size in context.required_attribute("shape")], _type(context, number or 1)


def _type(context: NodeContext, number: int) -> str:
    name = dtypes.dtype_name(number)
    if name is None or not dtypes.is_carried(name) or dtypes.carrier(name) != name:
        context.invalid(f"numbers of type {name or number} cannot be drawn")
    return name


def _seed(context: NodeContext) -> int:
    """Return 32 bits from the attribute, or from the node's name."""
    if context.has_attribute("seed"):
        return zlib.crc32(struct.pack("<f", float(context.attribute("seed", 0.0))))
    return zlib.crc32(node_name(context.node).encode())


def _drawn(context: NodeContext, shape: Sequence[Dim], dtype: str, distribution: Distribution) -> relax.Expr:
    """Return a tensor of numbers with a distribution."""
    seed = _seed(context)

    def draw(*sizes: Expr) -> te.Tensor:
        first, second = (_uniform(sizes, seed, stream) for stream in (0, 1))
        return te.compute(
            sizes, lambda *i: distribution(first(*i), second(*i)).astype(dtype), name=f"draw_{context.operator.lower()}"
        )

    return context.emit_te(draw, *map(expression, shape), primfunc_name_hint="random_numbers")


def _uniform(sizes: Sequence[Expr], seed: int, stream: int) -> te.Tensor:
    """Return uniform float32 numbers in [0, 1), with 24 random bits."""
    keys = [zlib.crc32(struct.pack("<III", seed, stream, step)) for step in (0, 1)]

    def hashed(*indices: Expr) -> Expr:
        flat: Expr = tirx.const(0, "int64")
        for index, size in zip(indices, sizes, strict=True):
            flat = flat * size + index
        scattered = _low(flat.astype("uint64")) * _word(0x9E3779B9)
        return _mixed(_low(_low(scattered) + _word(keys[0])))

    once = te.compute(sizes, hashed, name="hash_of_index")
    twice = te.compute(sizes, lambda *i: _mixed(_low(once(*i) + _word(keys[1]))), name="hash")
    return te.compute(
        sizes,
        lambda *i: tirx.shift_right(twice(*i), _word(8)).astype("float32") * tirx.const(2.0**-24, "float32"),
        name="uniform",
    )


def _word(value: int) -> Expr:
    """32 bits in 64: TVM assumes that unsigned arithmetic of 32 bits or more never overflows."""
    return tirx.const(value, "uint64")


def _low(bits: Expr) -> Expr:
    return tirx.bitwise_and(bits, _word(0xFFFFFFFF))


def _mixed(bits: Expr) -> Expr:
    """MurmurHash3's finalizer."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, None)):
        bits = tirx.bitwise_xor(bits, tirx.shift_right(bits, _word(shift)))
        if factor is not None:
            bits = _low(bits * _word(factor))
    return bits
