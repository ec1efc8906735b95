"""plan-layout with the precision bf16: what is stored between convolutions, and how far the numbers move."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tvm import relax

from compiler.passes.context import PassOptions, PipelineContext
from compiler.passes.layout.plan_layout import plan_layout
from targets import cpuinfo
from tests.compiler.passes.building import run_scheduled
from tests.compiler.passes.layout.test_plan_layout import GRAPHS, MACHINE, conv, kernels, module, residual

FEATURES = frozenset({"avx512bf16", "avx512vl"})
# What this processor lacks is scheduled for all the same, and computed by other code.
EXECUTED = frozenset(filter(cpuinfo.supports, FEATURES))
NARROW = PipelineContext(
    machine=MACHINE.model_copy(update={"features": FEATURES, "executed_features": EXECUTED}),
    options=PassOptions("bf16"),
)
# bfloat16 rounds to 8 bits: 2^-9 at most, relative. Weights, inputs and results of each of at most four layers are
# rounded, and all roundings agreeing in sign would add up to 12 * 2^-9; over a whole tensor they do not.
RELATIVE_ERROR = 2.0**-6


@pytest.mark.parametrize("name", ["residual", "depthwise and squeeze", "cut", "uneven groups", "unknown weight"])
def test_numbers(name: str) -> None:
    build, shapes = GRAPHS[name]
    rng = np.random.default_rng(1)
    arrays = [rng.standard_normal(shape).astype("float32") for shape in shapes]
    mod = module(list(shapes), build)
    expected = run_scheduled(mod, PipelineContext(), arrays)
    got = run_scheduled(mod, NARROW, arrays)
    assert np.isfinite(got).all()
    assert np.linalg.norm(got - expected) <= RELATIVE_ERROR * np.linalg.norm(expected)


def stored_types(mod: Any) -> dict[str, set[str]]:
    """The element types of what each kind of kernel gives."""
    found: dict[str, set[str]] = {}
    for block in mod["main"].body.blocks:
        for binding in block.bindings:
            value = binding.value
            if isinstance(value, relax.Call) and value.op.name == "relax.call_tir":
                name = value.args[0].name_hint.rstrip("0123456789")
                found.setdefault(name, set()).add(str(binding.var.ty.dtype))
    return found


def test_activations_between_convolutions_are_stored_in_bfloat16() -> None:
    planned = plan_layout(module([(1, 3, 10, 9)], residual), NARROW)
    names = kernels(planned)
    assert names == [
        *("words", "conv2d", "relax.nn.relu", "narrow"),
        *("conv2d", "relax.add", "widen", "relax.add", "relax.nn.relu", "unpack"),
    ]
    assert stored_types(planned)["narrow"] == {"uint16"}


def test_pooling_and_concatenation_read_bfloat16() -> None:
    def build(builder: Any, x: Any) -> Any:
        first = conv(builder, x, 16, 3)
        second = builder.emit(relax.op.nn.max_pool2d(first, (3, 3), (1, 1), (1, 1)))
        return conv(builder, builder.emit(relax.op.concat([first, second], 1)), 8, 32)

    names = kernels(plan_layout(module([(1, 3, 8, 9)], build), NARROW))
    assert "widen" not in names
    assert names.count("narrow") == 2
