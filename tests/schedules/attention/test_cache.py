"""Attention over a cache against float64, in the plain form and as rules write it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tvm import relax

from schedules.ir.tir import tvm
from tests.schedules.attention.cached import Case
from tests.schedules.harness import executable, lowered, runnable

CASES = {
    "first token": Case(),
    "decode": Case(position=37, heads=9, key_heads=3, size=64, value_size=64, capacity=100),
    "prompt": Case(queries=21, position=3, heads=6, key_heads=2, size=24, value_size=40, capacity=60),
    "window": Case(queries=19, position=5, capacity=33, options={"window": 4}),
    "window of one token": Case(position=30, options={"window": 7}),
    "softcap, sinks": Case(queries=5, position=11, sinks=True, options={"softcap": 2.5, "scale": 1.5}),
    "batch": Case(batch=3, queries=3, position=(0, 5, 17), size=7, value_size=5, heads=3, key_heads=1),
    "no position": Case(queries=6, position=None),
    "more queries than rows": Case(queries=9, capacity=6, position=None),
    "behind the capacity": Case(queries=4, position=38),
    "before the first row": Case(queries=4, position=-2),
    "far outside": Case(queries=2, position=2**62),
    "cross": Case(queries=5, capacity=23, position=None, options={"causal": False}),
    "cross, lengths": Case(batch=2, queries=5, position=(9, 0), options={"causal": False}, bias=(1, 4, 5, 40)),
    "mask": Case(batch=2, queries=17, position=None, options={"causal": False}, bias=(2, 1, 17, 40), mask=True),
    "short bias": Case(queries=3, position=20, bias=(1, 1, 1, 15)),
    "float16": Case(position=20, dtype="float16", cache="float16", size=20, heads=8, key_heads=1),
    "bfloat16": Case(queries=18, position=9, cache="bfloat16", size=32),
    "bfloat16 everywhere": Case(position=33, dtype="bfloat16", cache="bfloat16", size=32),
    "int8": Case(position=33, cache="int8", size=24, value_size=32),
    "int8 prompt": Case(queries=20, position=12, cache="int8", size=24, value_size=32),
}
TOLERANCE = {"float32": 2e-5, "float16": 2e-3, "bfloat16": 2e-2}


def close(result: Any, case: Case, arrays: Any) -> None:
    tolerance = TOLERANCE[case.dtype]
    np.testing.assert_allclose(result.astype("float64"), case.exact(arrays), rtol=tolerance, atol=tolerance)


def run(mod: Any, target: str, arrays: Any) -> Any:
    machine = relax.VirtualMachine(executable(mod, target), tvm.cpu())
    return machine["main"](*[tvm.runtime.tensor(each) for each in arrays.values()]).numpy()


@pytest.mark.parametrize("name", ["decode", "window", "softcap, sinks", "batch", "mask", "bfloat16", "int8"])
def test_plain(name: str) -> None:
    """The lowering that targets without a rule run."""
    case, target = CASES[name], runnable()[0]
    arrays = case.arrays()
    inputs = [(each.shape, str(each.dtype)) for each in arrays.values()]
    close(run(lowered(case.build(), inputs, target), target, arrays), case, arrays)
