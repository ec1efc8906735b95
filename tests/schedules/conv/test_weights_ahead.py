"""Shares of weights asked for ahead: together they are all of them, each once."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedules.conv.direct_nest import (
    ahead,
    prefetch_depth,
    prefetch_share,
)
from schedules.ir.expression import constant_int, expression, substitute
from schedules.ir.tir import tirx, tvm


def elements_asked(statement: Any) -> list[int]:
    """The places that a statement asks for, counted in elements from the start of the buffer."""
    if isinstance(statement, tirx.SeqStmt):
        return [place for each in statement.seq for place in elements_asked(each)]
    if isinstance(statement, tirx.For):
        rounds = range(int(statement.extent.value))
        return [
            place
            for i in rounds
            for place in elements_asked(substitute(statement.body, {statement.loop_var: expression(i)}))
        ]
    load = statement.value.args[1].args[0]
    place = 0
    for size, at in zip(load.source.ty.shape, load.indices, strict=True):
        known = constant_int(tvm.sym.Analyzer().simplify(at))
        assert known is not None
        place = place * int(size) + known
    return [place]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=3),
    st.sampled_from(["float32", "uint16", "int8"]),
    st.integers(1, 70),
    st.integers(0, 3),
)
def test_shares_are_all_of_it_once(shape: list[int], dtype: str, turns: int, more: int) -> None:
    line = {"float32": 16, "uint16": 32, "int8": 64}[dtype]
    buffer = tirx.decl_buffer([expression(size) for size in (2, *shape, line)], dtype, "weights")
    elements = prod(shape) * line
    start = [1, *(0 for _ in shape), 0]
    shares = [prefetch_share(buffer, start, elements, turn, turns) for turn in range(turns + more)]
    asked = [place for share in shares if share is not None for place in elements_asked(share)]
    minimum = list(range(elements, 2 * elements, line))
    assert asked[: len(minimum)] == minimum
    assert len(asked) < len(minimum) + -(-len(minimum) // turns)


@pytest.mark.parametrize(("multiply_adds", "parts"), [(16, 128), (28, 74), (2048, 1), (1 << 20, 1)])
def test_parts_ahead_cover_the_latency(multiply_adds: int, parts: int) -> None:
    assert ahead(multiply_adds) == parts


@pytest.mark.parametrize(
    ("lines", "extents", "depth"),
    [
        (128, (28, 4, 16), 2),  # many tiles: one line each, before its sum
        (1024, (7, 1, 32, 4), 4),  # few: in every part of a channel block
        (400, (7, 1, 32, 4), 3),
        (10**6, (7, 1, 32), 3),
    ],
)
def test_small_shares_are_asked_for_less_often(lines: int, extents: tuple[int, ...], depth: int) -> None:
    assert prefetch_depth(lines, extents, 2) == depth
