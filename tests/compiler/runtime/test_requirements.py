"""Requirements of inputs, checked in Python; `tests/compiler/device/test_checks.py` tests the C++ checks."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.errors import TensorwrightError
from compiler.runtime import load
from tests.compiler.runtime.requirement_cases import CASES, Case, inputs_of, module_of


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_python_answers_as_the_table_says(case: Case) -> None:
    message = None
    inputs = inputs_of(case)
    try:
        np.testing.assert_array_equal(load(module_of(case)).run(inputs)["y"], 2 * inputs["a"])
    except TensorwrightError as error:
        message = str(error)
    assert message == case["error"]
