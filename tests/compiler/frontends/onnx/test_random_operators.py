"""Every operator with random cases, over attributes, shapes and types, against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest

from tests.compiler.frontends.onnx.random_cases import operators, random_case
from tests.compiler.frontends.onnx.support import Case, check_cases

_CASES_EACH = 5
_OPERATORS_A_MODULE = 8
_GROUPS = [
    operators()[start : start + _OPERATORS_A_MODULE] for start in range(0, len(operators()), _OPERATORS_A_MODULE)
]


@pytest.mark.parametrize("group", _GROUPS, ids=lambda group: f"{group[0]}-{group[-1]}")
def test_random_nodes_equal_the_reference(group: list[str]) -> None:
    random = np.random.default_rng(20)
    by_opset: dict[int, list[Case]] = {}
    for operator in group:
        for _ in range(_CASES_EACH):
            case = random_case(operator, random)
            by_opset.setdefault(case.opset, []).append(case)
    failures = [failure for cases in by_opset.values() for failure in check_cases(cases)]
    assert not failures, "\n".join(failures)
