"""float16 convolutions are computed in float32 between casts from and to float16."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import compiler
import schedules.ir.load_tvm  # noqa: F401  (loads TVM without torch)
from compiler.passes.canonicalize.widen_half import widen_half
from compiler.passes.context import PipelineContext
from compiler.passes.rewriting.graph import bindings_of, operator_name, rewritable_functions
from compiler.passes.rewriting.matching import dtype_of
from schedules import Machine

import tvm  # isort: skip
from tvm import relax  # isort: skip

CHANNELS, SIDE = 32, 12
MACHINE = Machine(architecture="x86_64", vector_bits=256, vector_registers=16, cores=2)


def _weights() -> list[np.ndarray[Any, Any]]:
    random = np.random.default_rng(0)
    shapes = [(CHANNELS, CHANNELS, 3, 3), (CHANNELS, CHANNELS, 1, 1), (1, CHANNELS, 1, 1)]
    return [(random.standard_normal(shape) / 8).astype(np.float16) for shape in shapes]


def _net(weights: list[np.ndarray[Any, Any]], dtype: str) -> tvm.IRModule:
    """Two convolutions, one accumulating in float32, a split, a concatenation and a residual sum."""
    x = relax.Var("x", relax.TensorType((1, CHANNELS, SIDE, SIDE), dtype))
    first, second, bias = (relax.const(each.astype(dtype)) for each in weights)
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            wide = builder.emit(relax.op.nn.conv2d(x, first, padding=1, out_dtype="float32"))
            value = builder.emit(relax.op.nn.relu(builder.emit(relax.op.astype(wide, dtype))))
            parts = builder.emit(relax.op.split(value, 2, axis=1))
            turned = [builder.emit(relax.TupleGetItem(parts, index)) for index in (1, 0)]
            value = builder.emit(relax.op.concat(turned, axis=1))
            value = builder.emit(relax.op.nn.conv2d(value, second))
            value = builder.emit(relax.op.add(builder.emit(relax.op.add(value, bias)), x))
            output = builder.emit_output(value)
        builder.emit_func_output(output)
    return builder.get()


def test_numbers_are_those_of_float32_rounded_once() -> None:
    weights = _weights()
    module = compiler.compile(_net(weights, "float16"))
    # Few weights are not worth the kernel that widens them: the second convolution's are float32.
    assert module.artifact.parameter_bytes <= weights[0].nbytes + 2 * weights[1].nbytes + (4 << 10)
    x = np.random.default_rng(1).standard_normal((1, CHANNELS, SIDE, SIDE)).astype(np.float16)
    (got,) = module.run([x]).values()
    (expected,) = compiler.compile(_net(weights, "float32")).run([x.astype(np.float32)]).values()
    assert got.dtype == np.float16
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-5)


def test_only_the_borders_stay_float16() -> None:
    mod = widen_half(_net(_weights(), "float16"), PipelineContext(machine=MACHINE))
    ((_, function),) = rewritable_functions(mod)
    narrow = [operator_name(each.value) for each in bindings_of(function.body) if dtype_of(each.var) == "float16"]
    assert [name for name in narrow if name is not None] == ["relax.astype"]
    assert dtype_of(function.body) == "float16"


def test_functions_without_float16_convolutions_stay() -> None:
    mod = _net(_weights(), "float32")
    assert widen_half(mod, PipelineContext(machine=MACHINE)).same_as(mod)
    half = _net(_weights(), "float16")
    assert widen_half(half, PipelineContext()).same_as(half)


@pytest.mark.parametrize(
    ("target", "precision", "rules"),
    [
        ("granite-rapids-simulated", None, {"conv-tiles", "matmul-f16"}),
        ("sapphire-rapids-simulated", "float16", {"conv-dot", "matmul-f16"}),
        ("sapphire-rapids-simulated", None, {"conv-direct"}),
    ],
)
def test_models_of_float16_multiply_it_where_that_is_faster(
    target: str, precision: str | None, rules: set[str]
) -> None:
    """In tiles, whose sums are float32, and where they are asked for in vectors, which add a few steps in float16. What
    lies between convolutions is rounded too, by 2^-11 each time."""
    weights = _weights()
    convolutions, product = _net(weights, "float16"), _product(weights[0].reshape(9 * CHANNELS, CHANNELS))
    random = np.random.default_rng(1)
    data = (
        random.standard_normal(shape).astype(np.float16) for shape in ((1, CHANNELS, SIDE, SIDE), (5, 9 * CHANNELS))
    )
    used = set()
    for mod, x in zip((convolutions, product), data, strict=True):
        module = compiler.compile(mod, target=target, precision=precision)
        used |= {kernel.rule for kernel in module.artifact.manifest.kernels}
        (got,) = module.run([x]).values()
        (expected,) = compiler.compile(mod).run([x]).values()
        assert got.dtype == np.float16
        np.testing.assert_allclose(got, expected, rtol=2**-8, atol=2**-8 * float(np.abs(expected).max()))
    assert rules <= used


def _product(weight: np.ndarray[Any, Any]) -> tvm.IRModule:
    x = relax.Var("x", relax.TensorType((5, weight.shape[0]), "float16"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            output = builder.emit_output(relax.op.matmul(x, relax.const(weight)))
        builder.emit_func_output(output)
    return builder.get()
