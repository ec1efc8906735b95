"""Relax modules as sources."""

from __future__ import annotations

import numpy as np
from tvm import relax
from tvm_ffi import structural_equal

import compiler


def test_a_result_that_is_no_tuple_and_a_module_that_stays_as_it_was() -> None:
    data = relax.Var("data", relax.TensorType((3, 4), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [data]):
        with builder.dataflow():
            output = builder.emit_output(relax.op.nn.relu(data))
        builder.emit_func_output(output)
    mod = builder.get()
    before = mod.clone()
    values = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    for _ in range(2):
        (got,) = compiler.compile(mod, threads=1).run({"data": values}).values()
        np.testing.assert_array_equal(got, np.maximum(values, 0))
    assert structural_equal(mod, before)
