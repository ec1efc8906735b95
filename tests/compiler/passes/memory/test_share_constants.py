"""Equal constants are packed, stored and loaded once, in all layouts and compact forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import compiler
import schedules.ir.load_tvm  # noqa: F401  (loads TVM without torch)
from compiler.passes.context import PipelineContext
from compiler.passes.memory.lift_parameters import constants_of, share_constants
from compiler.passes.rewriting.expansion import Expansion

import tvm  # isort: skip
from tvm import relax  # isort: skip

SIZE, STEPS = 96, 3
Array = np.ndarray[Any, Any]


def _recurrent(weight: Array) -> tvm.IRModule:
    """x = tanh(x w), `STEPS` times, with a separate copy of the weight for each step."""
    x = relax.Var("x", relax.TensorType((1, SIZE), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            value = x
            for _ in range(STEPS):
                value = builder.emit(relax.op.tanh(relax.op.matmul(value, relax.const(weight.copy()))))
            output = builder.emit_output(value)
        builder.emit_func_output(output)
    return builder.get()


def _weight(form: str) -> Array:
    plain = np.random.default_rng(0).standard_normal((SIZE, SIZE)).astype(np.float32) / 10
    if form == "half":
        return plain.astype(np.float16).astype(np.float32)
    return np.round(plain, 1).astype(np.float32) if form == "palette" else plain


@pytest.mark.parametrize(("form", "bits"), [("plain", 32), ("half", 16), ("palette", 4)])
def test_a_weight_used_several_times_is_stored_once(form: str, bits: int) -> None:
    weight = _weight(form)
    module = compiler.compile(_recurrent(weight))
    assert module.artifact.parameter_bytes <= weight.size * bits // 8 + 256
    x = np.random.default_rng(1).standard_normal((1, SIZE)).astype(np.float32)
    expected = x.astype(np.float64)
    for _ in range(STEPS):
        expected = np.tanh(expected @ weight)
    (output,) = module.run([x]).values()
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-5)


def test_a_filter_in_two_layouts_is_stored_once() -> None:
    """Winograd's method is used for the large image, the direct convolution for the small one."""
    weight = np.random.default_rng(0).standard_normal((64, 64, 3, 3)).astype(np.float32)
    sides = (32, 2)
    images = [relax.Var(f"x{n}", relax.TensorType((1, 64, n, n), "float32")) for n in sides]
    builder = relax.BlockBuilder()
    with builder.function("main", images):
        with builder.dataflow():
            made = [builder.emit(relax.op.nn.conv2d(x, relax.const(weight.copy()), padding=1)) for x in images]
            output = builder.emit_output(relax.Tuple(made))
        builder.emit_func_output(output)
    module = compiler.compile(builder.get())
    assert module.artifact.parameter_bytes <= weight.nbytes + (8 << 10)
    random = np.random.default_rng(1)
    data = [random.standard_normal((1, 64, n, n)).astype(np.float32) for n in sides]
    for x, got in zip(data, module.run(data).values(), strict=True):
        n = x.shape[-1]
        padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
        expected = sum(
            np.einsum("oi,nihw->nohw", weight[:, :, p, q], padded[:, :, p : p + n, q : q + n])
            for p in range(3)
            for q in range(3)
        )
        assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


def test_bits_types_and_shapes_decide_and_the_compact_one_is_kept() -> None:
    values = np.arange(6, dtype=np.float32)
    different = [values.reshape(2, 3), -np.zeros(6, np.float32), np.zeros(6, np.float32), values.view(np.int32)]
    constants = [relax.const(each) for each in (values, *different, values.copy(), np.float32(1), np.float32(1))]
    builder = relax.BlockBuilder()
    with builder.function("main", []):
        with builder.dataflow():
            output = builder.emit_output(relax.Tuple(constants))
        builder.emit_func_output(output)
    context = PipelineContext()
    context.expansions.known[constants[5]] = Expansion((values,), lambda x: x, "same")
    kept = constants_of(share_constants(builder.get(), context))
    assert list(kept) == [constants[5], *constants[1:5], *constants[6:]]
