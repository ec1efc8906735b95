"""A run that does not fit into memory is an error that says so, and the module stays usable."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest

import compiler
from compiler.errors import InputError


def test_a_run_that_does_not_fit_is_named_and_the_next_one_works() -> None:
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]> graph (int64[1] n) => (float[m,m2] y)
      { both = Concat<axis: int = 0>(n, n)
        zeros = ConstantOfShape(both)
        y = Exp(zeros) }""")
    module = compiler.compile(model)
    with pytest.raises(InputError, match="more memory"):
        module.run([np.array([1 << 22])])
    np.testing.assert_array_equal(module.run([np.array([3])])["y"], np.ones((3, 3), np.float32))
