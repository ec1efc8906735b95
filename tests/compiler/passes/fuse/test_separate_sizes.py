"""separate-sizes: blocks are split where sizes are defined, as early as possible, and nothing else moves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tvm import relax, tirx

from compiler.passes.registry import get_pass
from tests.compiler.passes.building import Build, apply, run_module

op = relax.op
NAME = "separate-sizes"


def size_of_sum(build: Build, x: Any, name: str) -> tuple[Any, Any]:
    """A size that is the integer part of the sum of x, and the shape that defines it."""
    total = build.emit(op.astype(build.emit(op.sum(x)), "int64"))
    shape = build.emit(op.tensor_to_shape(build.emit(op.reshape(total, (1,)))))
    size = tirx.Var(name, "int64")
    return size, build.match(shape, relax.ShapeType([size]))


def kinds(mod: Any) -> list[tuple[bool, int]]:
    """For each block of main: true for a dataflow block, and its number of bindings."""
    return [(isinstance(each, relax.DataflowBlock), len(each.bindings)) for each in mod["main"].body.blocks]


@pytest.mark.parametrize("sizes", [1, 2])
def test_a_size_is_defined_before_all_that_it_does_not_need(sizes: int) -> None:
    build = Build()
    x = build.input("x", ("n", 3))
    early = build.emit(op.exp(x))  # its reader is behind the cast: it goes there too
    results = []
    for index in range(sizes):
        size, _ = size_of_sum(build, x, f"size{index}")
        results.append(build.emit(op.zeros(relax.ShapeExpr([size, 2]), "float32")))
    mod = build.module(build.emit(op.add(early, early)), *results)
    after = apply(NAME, mod)
    assert kinds(after) == [(True, 4), (False, 1)] * sizes + [(True, 3 + sizes)]
    first_of_the_rest = after["main"].body.blocks[-1].bindings[0]
    assert str(first_of_the_rest.value.op.name) == "relax.exp"
    values = np.full((2, 3), 0.75, "float32")
    for got, expected in zip(run_module(after, values), run_module(mod, values), strict=True):
        np.testing.assert_array_equal(got, expected)
    assert run_module(after, values)[1].shape == (4, 2)


def test_what_the_size_is_computed_from_may_be_read_later() -> None:
    build = Build()
    x = build.input("x", (4,))
    shifted = build.emit(op.add(x, x))
    size, _ = size_of_sum(build, shifted, "m")
    # Reads the size in its type alone, and a variable of the block before the cast.
    wide = build.emit(op.broadcast_to(shifted, relax.ShapeExpr([size, 4])))
    after = apply(NAME, build.module(wide))
    values = np.array([0.5, 0.5, 0.25, 0.25], "float32")
    np.testing.assert_array_equal(run_module(after, values)[0], np.tile(2 * values, (3, 1)))


def test_a_size_that_depends_on_another_comes_after_it() -> None:
    build = Build()
    x = build.input("x", (4,))
    size, _ = size_of_sum(build, x, "m")
    ones = build.emit(op.ones(relax.ShapeExpr([size + 2]), "float32"))
    other, _ = size_of_sum(build, ones, "k")
    after = apply(NAME, build.module(build.emit(op.zeros(relax.ShapeExpr([other]), "float32"))))
    assert kinds(after) == [(True, 4), (False, 1), (True, 5), (False, 1), (True, 2)]
    assert run_module(after, np.full(4, 0.5, "float32"))[0].shape == (4,)


def test_what_comes_after_a_check_of_computed_sizes_stays_behind_it() -> None:
    build = Build()
    x = build.input("x", (4,))
    early = build.emit(op.exp(x))
    total = build.emit(op.astype(build.emit(op.sum(x)), "int64"))
    checked = build.emit(op.tensor_to_shape(build.emit(op.reshape(total, (1,)))))
    build.match(checked, relax.ShapeType([2]))
    size, _ = size_of_sum(build, early, "m")
    after = apply(NAME, build.module(build.emit(op.zeros(relax.ShapeExpr([size]), "float32"))))
    blocks = after["main"].body.blocks
    assert kinds(after) == [(True, 4), (False, 1), (True, 5), (False, 1), (True, 2)]
    assert str(blocks[2].bindings[0].value.op.name) == "relax.exp"


def test_checks_of_known_sizes_stay_where_they_are() -> None:
    build = Build()
    x, y = build.input("x", ("n", 3)), build.input("y", ("n", 3))
    checked = build.match(build.emit(op.exp(y)), x.ty)
    mod = build.module(build.emit(op.add(x, checked)))
    assert get_pass(NAME)(mod).same_as(mod)
