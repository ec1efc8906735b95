"""Proofs about sizes: what is equal for all values of the variables is found equal, and nothing else."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from schedules.ir.size_proofs import Congruence, SizeSpellings
from schedules.ir.tir import structural_map, tirx, tvm

H, W = tirx.Var("h", "int64"), tirx.Var("w", "int64")


def _same(size: Any, kernel: int, stride: int) -> Any:
    """The size behind a window with padding by SAME."""
    padding = tirx.max(((size + (stride - 1)) // stride - 1) * stride + kernel - size, tirx.const(0, "int64"))
    return (size + padding - kernel) // stride + 1


EQUAL = [
    ((H + 1 + 1 - 3) // 2 + 1, (H + 1) // 2),
    (5 + H // 3 * W, W * (H // 3) + 5),
    (_same(W, 3, 2), (W + 1) // 2),
    (_same(_same(W, 3, 2), 3, 2), (W + 3) // 4),
    (((H - 1) // 2 + 1 - 1) // 2 + 1, (H + 3) // 4),
    (H // 2 * 2 + H % 2, H),
    (H * W * 16 // W, H * 16),
    ((H % -4 - H) // 4, -H // 4),
    (H // -2, -H // 2),
    (tirx.min(H + 3, H + 5), H + 3),
]
DIFFERENT = [
    (H // 2 * 2, H),
    ((H + 1) // 2, H // 2),
    (H // -2, -(H // 2)),
    (tirx.Select(tirx.EQ(H, tirx.const(1, "int64")), tirx.const(0, "int64"), H), H),
    (tirx.max(H, W), H),
    (H * W, H + W),
]


@pytest.mark.parametrize(("left", "right"), EQUAL)
def test_formulas_that_are_equal_for_all_sizes_have_one_spelling(left: Any, right: Any) -> None:
    spellings = SizeSpellings()
    assert spellings.equal(left, right)
    assert spellings.of(left).same_as(spellings.of(right))
    assert all(_value(left, h, w) == _value(right, h, w) for h, w in itertools.product(range(1, 14), repeat=2))


@pytest.mark.parametrize(("left", "right"), DIFFERENT)
def test_formulas_that_differ_somewhere_are_not_equal(left: Any, right: Any) -> None:
    assert not SizeSpellings().equal(left, right)
    assert any(_value(left, h, w) != _value(right, h, w) for h, w in itertools.product(range(1, 14), repeat=2))


def test_a_multiple_is_known_to_be_one() -> None:
    spellings = SizeSpellings({"h": Congruence(4), "w": Congruence(2, 1)})
    assert spellings.equal(H // 4 * 4, H)
    assert spellings.equal(H // 2 // 2, H // 4)
    assert spellings.equal(W // 2 * 2 + 1, W)
    assert not spellings.equal(H // 8 * 8, H)


def test_a_proof_of_too_many_cases_is_not_tried() -> None:
    assert SizeSpellings().equal(_same(W, 3, 31), (W + 30) // 31)
    assert not SizeSpellings().equal(_same(W, 3, 101), (W + 100) // 101)


def _value(size: Any, h: int, w: int) -> int:
    bound = structural_map(size, (tvm.ir.Var, lambda var: tirx.const(h if var.same_as(H) else w, "int64")))
    return int(tvm.sym.Analyzer().simplify(bound))
