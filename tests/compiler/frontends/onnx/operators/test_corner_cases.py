"""Corner cases of operators through the whole pipeline: empty tensors, scalars, negative pads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import compiler
from tests.compiler.frontends.onnx.support import Case, assert_same, reference

_RANDOM = np.random.default_rng(0)


def _f(*shape: int) -> Any:
    return _RANDOM.standard_normal(shape).astype(np.float32)


def _i(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


NO_INDEX = np.zeros((2, 0), np.int64)
CASES = [
    Case("Gather", [_f(3, 2), NO_INDEX], {"axis": 0}),
    Case("Gather", [_f(3, 2), NO_INDEX], {"axis": -1}, constants=[1]),
    Case("Gather", [_f(3, 2, 2, 0), np.array(1)], {"axis": 0}, constants=[1]),
    Case("GatherND", [_f(3, 2), np.zeros((0, 2, 2), np.int64)]),
    Case("NonZero", [_f(0, 3)]),
    Case("ScatterElements", [_f(3), _i(), _f(0)]),
    Case("ScatterND", [_f(3, 2), np.zeros((0, 2), np.int64), _f(0)]),
    Case("Where", [np.zeros(0, bool), _f(1), _f()]),
    Case("MatMul", [_f(2, 0), _f(0, 3)]),
    Case("Gemm", [_f(2, 0), _f(0, 3), _f(3)]),
    Case("Conv", [_f(0, 2, 5, 5), _f(3, 2, 3, 3)], constants=[1]),
    Case("Einsum", [_f(2, 0), _f(0, 4)], {"equation": "ij,jk->ik"}),
    Case("ReduceSum", [_f(2, 0, 3), _i(-2)], {"keepdims": 0}, constants=[1]),
    Case("TopK", [_f(3, 4), _i(0)], constants=[1], outputs=2),
    Case("Tile", [_f(2, 3), _i(0, 2)], constants=[1]),
    Case("Pow", [np.abs(_f(2, 1, 4)), _f(3, 1)]),
    Case("Softmax", [_f(2, 0, 3)]),
    Case("RoiAlign", [_f(1, 2, 5, 5), _f(0, 4), _i()], {"output_height": 2, "output_width": 2}),
    *(
        Case("Pad", [_f(5, 6), _i(*pads)], {"mode": mode}, constants=[1])
        for mode in ("reflect", "edge", "wrap")
        for pads in ((-1, 2, 2, -1), (-2, 1, 2, -3))
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.operator)
def test_corner_case(case: Case) -> None:
    model = case.model()
    outputs = compiler.compile(model, threads=1).run(case.feeds())
    for (name, found), expected in zip(outputs.items(), reference(model, case.feeds()), strict=True):
        assert_same(found, expected, case.rtol, case.atol, name)


@pytest.mark.parametrize("axis", [None, 1])
def test_nothing_has_no_distinct_elements(axis: int | None) -> None:
    attributes = {} if axis is None else {"axis": axis}
    case = Case("Unique", [_f(2, 0)], attributes, outputs=4)
    outputs = list(compiler.compile(case.model(), threads=1).run(case.feeds()).values())
    assert [output.shape for output in outputs] == [(0,) if axis is None else (2, 0), (0,), (0,), (0,)]
