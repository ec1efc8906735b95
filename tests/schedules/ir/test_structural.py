"""Walks and maps by classes are those of `tvm_ffi`."""

from __future__ import annotations

from typing import Any

import pytest

from schedules.ir.structural import structural_map, structural_walk
from schedules.ir.tir import structural_equal, tirx, tvm

# isort: split
import tvm_ffi

X, Y = (tvm.ir.Var(name, "int32") for name in "xy")
ROOT = tirx.Evaluate(tirx.FloorDiv(X * 3 + Y, 4) + tirx.FloorMod(X, 7))


@pytest.mark.parametrize("order", ["pre", "post"])
def test_objects_are_visited_in_the_same_order(order: Any) -> None:
    def visited(walk: Any) -> list[str]:
        found: list[str] = []

        def note(each: Any) -> None:
            found.append(str(each))

        walk(ROOT, [((tirx.FloorDiv, tirx.FloorMod), note), (tvm.ir.Var, note)], order=order)
        walk(ROOT, ((tirx.Mul, tirx.Add), note), order=order)
        walk(ROOT, (tirx.IntImm, note), order=order)
        return found

    assert len(visited(structural_walk)) == 11
    assert visited(structural_walk) == visited(tvm_ffi.structural_walk)


def test_objects_are_replaced() -> None:
    callbacks = [(tvm.ir.Var, lambda each: Y if each.same_as(X) else each), (tirx.IntImm, lambda each: each + each)]
    changed = structural_map(ROOT, callbacks)
    assert structural_equal(changed, tvm_ffi.structural_map(ROOT, callbacks))
    assert not structural_equal(changed, ROOT)


def test_what_a_callback_raises_comes_out() -> None:
    def refuse(_: object) -> None:
        raise ValueError("no variable")

    with pytest.raises(ValueError, match="no variable"):
        structural_walk(ROOT, (tvm.ir.Var, refuse))
    with pytest.raises(TypeError, match="type"):
        structural_walk(ROOT, (_Unknown, refuse))


class _Unknown:
    """A class that TVM does not know."""
