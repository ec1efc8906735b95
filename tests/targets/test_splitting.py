"""Splits become slices with the same numbers."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax

from targets.splitting import slices_for_splits
from tests.unoptimized import unoptimized_machine


@pytest.mark.parametrize("sections", [3, 2, [1, 4]])
def test_the_same_numbers(sections: int | list[int]) -> None:
    x = relax.Var("x", relax.TensorType((2, 7, 3), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            parts = builder.emit(relax.op.split(x, sections, 1))
            count = sections if isinstance(sections, int) else len(sections) + 1
            fields = [builder.emit(relax.TupleGetItem(parts, index)) for index in range(count)]
            result = builder.emit_output(relax.Tuple(list(reversed(fields))))
        builder.emit_func_output(result)
    sliced = slices_for_splits(builder.get())
    assert "R.strided_slice" in sliced.script()
    data = np.random.default_rng(0).normal(size=(2, 7, 3)).astype(np.float32)
    machine = unoptimized_machine(relax.transform.DeadCodeElimination(["main"])(sliced))
    results = machine["main"](tvm.runtime.tensor(data))
    edges = [-(-7 // sections) * part for part in range(1, count)] if isinstance(sections, int) else sections
    for actual, wanted in zip(results, reversed(np.split(data, edges, axis=1)), strict=True):
        np.testing.assert_array_equal(actual.numpy(), wanted)
