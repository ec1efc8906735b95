"""Tensors of reports as JSON objects."""

from __future__ import annotations

from typing import Any

import pytest

from compiler.profiling.tensor_fields import tensor_fields


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x: float32[batch, 64]", {"name": "x", "dtype": "float32", "shape": ["batch", 64]}),
        ("a: b: int64[]", {"name": "a: b", "dtype": "int64", "shape": []}),
        ("y: float16[min(n, 4), 2*n, ?]", {"name": "y", "dtype": "float16", "shape": ["min(n, 4)", "2*n", None]}),
        ("s: sequence_type", {"name": "s", "kind": "sequence_type"}),
    ],
)
def test_fields(text: str, expected: dict[str, Any]) -> None:
    assert tensor_fields(text) == expected
