from __future__ import annotations

import pytest

from compiler.serving.batching.layout import find_layout
from tests.compiler.serving.building import module_of


@pytest.mark.parametrize(
    ("kind", "name", "inputs", "rows"),
    [
        ("rows", "n", {"x": 0}, None),
        ("columns", "n", {"x": 1}, None),
        ("sequences", "n", {"x": 0}, None),
        ("fixed", "batch", {"x": 0}, 4),
        ("shared", "n", {"x": 0}, None),
    ],
)
def test_rows_that_are_independent_are_found(kind: str, name: str, inputs: dict[str, int], rows: int | None) -> None:
    layout = find_layout(module_of(kind))
    assert layout is not None
    assert (layout.name, dict(layout.inputs), layout.rows) == (name, inputs, rows)


@pytest.mark.parametrize("kind", ["mixed", "fixed mixed", "total"])
def test_rows_that_depend_on_each_other_are_not_put_together(kind: str) -> None:
    assert find_layout(module_of(kind)) is None
