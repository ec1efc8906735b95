"""The results of the last run are freed before the next one allocates its own, unless the caller holds them."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest

import compiler

_GRAPH = "agraph (float[{rows}, 512] x) => (float[{rows}, 512] y) { y = Neg(x) }"
_MODEL = f'<ir_version: 8, opset_import: ["" : 17]> {_GRAPH}'


@pytest.mark.parametrize("rows", ["n", "600"])
def test_memory_of_results(rows: str) -> None:
    module = compiler.compile(onnx.parser.parse_model(_MODEL.replace("{rows}", rows)), threads=1, records=False)
    inputs = [np.full((600, 512), value, np.float32) for value in range(6)]
    addresses = [module.run([each])["y"].ctypes.data for each in inputs]
    assert len(set(addresses[2:])) == 1  # the first two run other functions
    held = [module.run([each])["y"] for each in inputs]
    assert [int(each[0, 0]) for each in held] == [0, -1, -2, -3, -4, -5]
    assert len({each.ctypes.data for each in held}) == len(held)
