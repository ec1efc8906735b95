"""cancel-reshapes: which reshapes are removed, and that results stay equal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tvm import relax

from compiler.passes.canonicalize.cancel_transposes import cancel_reshapes
from compiler.passes.context import PipelineContext
from tests.compiler.passes.building import run_scheduled
from tests.compiler.passes.layout.test_plan_layout import kernels, module

op = relax.op


def between(builder: Any, x: Any, function: Any, back: tuple[int, ...]) -> Any:
    flat = builder.emit(op.reshape(x, (6, 5)))
    return builder.emit(op.reshape(builder.emit(function(builder, flat)), back))


def gelu_of_scaled(builder: Any, x: Any) -> Any:
    return op.nn.gelu(builder.emit(op.multiply(x, relax.const(0.5, "float32"))))


def rounded(builder: Any, x: Any) -> Any:
    scale, zero = relax.const(0.25, "float32"), relax.const(3, "uint8")
    return op.dequantize(builder.emit(op.quantize(x, scale, zero, -1, "uint8")), scale, zero, -1, "float32")


@pytest.mark.parametrize("function", [gelu_of_scaled, rounded])
def test_functions_of_elements_let_reshapes_meet(function: Any) -> None:
    mod = module([(2, 3, 5)], lambda builder, x: between(builder, x, function, (2, 3, 5)))
    result = cancel_reshapes(mod, PipelineContext())
    assert "relax.reshape" not in kernels(result)
    x = np.random.default_rng(0).standard_normal((2, 3, 5)).astype("float32")
    np.testing.assert_array_equal(
        run_scheduled(result, PipelineContext(), [x]), run_scheduled(mod, PipelineContext(), [x])
    )


def row_wise(builder: Any, x: Any) -> Any:
    return op.nn.softmax(x, axis=-1)


def with_a_row(builder: Any, x: Any) -> Any:
    return op.add(x, relax.const(np.arange(5, dtype="float32")))


@pytest.mark.parametrize(
    ("function", "back"), [(row_wise, (2, 3, 5)), (with_a_row, (2, 3, 5)), (gelu_of_scaled, (3, 2, 5))]
)
def test_what_depends_on_the_shape_keeps_it(function: Any, back: tuple[int, ...]) -> None:
    mod = module([(2, 3, 5)], lambda builder, x: between(builder, x, function, back))
    assert cancel_reshapes(mod, PipelineContext()) is mod


def test_a_reshaped_value_that_is_read_elsewhere_stays() -> None:
    def build(builder: Any, x: Any) -> Any:
        flat = builder.emit(op.reshape(x, (6, 5)))
        back = builder.emit(op.reshape(builder.emit(op.nn.relu(flat)), (2, 3, 5)))
        return builder.emit(op.add(builder.emit(op.sum(flat)), back))

    mod = module([(2, 3, 5)], build)
    assert cancel_reshapes(mod, PipelineContext()) is mod


@pytest.mark.parametrize(
    ("middle", "other", "first"),
    [
        ((1, 4, 3, 5), (4, 1, 5), True),
        ((1, 4, 3, 5), (1, 4, 1, 1), False),
        ((4, 1, 3, 5), (5,), True),
        ((4, 3, 1, 5, 1), (4, 1, 1, 5, 1), False),
    ],
)
def test_a_dimension_of_one_inserted_for_another_operand(
    middle: tuple[int, ...], other: tuple[int, ...], first: bool
) -> None:
    def build(builder: Any, x: Any, y: Any) -> Any:
        wide = builder.emit(op.reshape(x, middle))
        both = builder.emit(op.subtract(wide, y) if first else op.subtract(y, wide))
        return builder.emit(op.reshape(both, (4, 3, 5)))

    mod = module([(4, 3, 5), other], build)
    result = cancel_reshapes(mod, PipelineContext())
    assert kernels(result)[-1] == "relax.subtract"
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape).astype("float32") for shape in ((4, 3, 5), other)]
    np.testing.assert_array_equal(
        run_scheduled(result, PipelineContext(), arrays), run_scheduled(mod, PipelineContext(), arrays)
    )


@pytest.mark.parametrize(("middle", "other"), [((1, 4, 3, 5), (2, 4, 3, 5)), ((2, 2, 3, 5), (2, 1, 3, 5))])
def test_a_reshape_stays_where_the_other_operand_needs_it(middle: tuple[int, ...], other: tuple[int, ...]) -> None:
    def build(builder: Any, x: Any, y: Any) -> Any:
        both = builder.emit(op.subtract(builder.emit(op.reshape(x, middle)), y))
        return builder.emit(op.reshape(both, (4, 3, 5) if middle[0] == 2 else (8, 3, 5)))

    mod = module([(4, 3, 5), other], build)
    assert cancel_reshapes(mod, PipelineContext()) is mod
