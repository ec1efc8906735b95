"""Loops whose extents are known when the kernel runs: collapsed, in vectors to their ends, shared by pieces of rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax

import targets
from schedules.ir.expression import nodes
from schedules.ir.stages import kernels_of
from schedules.ir.tir import VECTORIZED, tirx, tvm
from schedules.selection.apply import apply_schedules
from tests.schedules.harness import (
    AVX512,
    Array,
    Build,
    lowered,
    normal,
    runnable,
    scheduled,
    virtual_machine,
)

op = relax.op
N, ROWS, COLUMNS = (tirx.Var(name, "int64") for name in ("n", "rows", "columns"))
IMAGES: list[tuple[Any, str]] = [((N, 3, ROWS, COLUMNS), "float32")]
SIZES = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 70))


def one(function: Callable[..., Any]) -> Build:
    return lambda builder, x: builder.emit(function(x))


def softmax(x: Array) -> Array:
    powers = np.exp(x.astype("float64") - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def biased(x: Any) -> Any:
    return op.exp(op.add(x, relax.const(np.arange(3, dtype="float32").reshape(3, 1, 1))))


def padded_exp(x: Array) -> Array:
    return np.exp(np.pad(x.astype("float64"), [(0, 0), (0, 0), (1, 2), (3, 0)]))


CASES: list[tuple[Build, Callable[[Array], Array]]] = [
    (one(op.tanh), lambda x: np.tanh(x.astype("float64"))),
    (one(biased), lambda x: np.exp(x.astype("float64") + np.arange(3).reshape(3, 1, 1))),
    (one(lambda x: op.nn.softmax(x, -1)), softmax),
    (one(lambda x: op.sum(x, [3])), lambda x: x.sum(3, dtype="float64")),
    (one(lambda x: op.max(x, [2, 3])), lambda x: x.max((2, 3))),
    (one(op.max), lambda x: x.max()),
    (one(lambda x: op.sum(op.exp(x), [0, 1, 3])), lambda x: np.exp(x.astype("float64")).sum((0, 1, 3))),
    (one(lambda x: op.exp(op.nn.pad(x, [0, 0, 0, 0, 1, 2, 3, 0]))), padded_exp),
]


@pytest.mark.parametrize("target", runnable())
@pytest.mark.parametrize("case", range(len(CASES)))
def test_numbers_of_any_sizes(case: int, target: str) -> None:
    build, expected = CASES[case]
    machine = virtual_machine(scheduled(build, IMAGES, target)[0], target)

    @settings(max_examples=12, deadline=None)
    @given(sizes=SIZES)
    def check(sizes: tuple[int, int, int]) -> None:
        x = normal((sizes[0], 3, *sizes[1:]))
        result = machine["main"](tvm.runtime.tensor(x)).numpy()
        np.testing.assert_allclose(result, expected(x), rtol=2e-6, atol=2e-6)

    check()


def loops(build: Build) -> list[str]:
    """The names of the loops of a kernel on one core, inner ones first, without those over lanes of a vector."""
    mod, _ = apply_schedules(lowered(build, IMAGES, AVX512), targets.get(AVX512, cores=1).machine)
    [(_, function)] = kernels_of(mod)
    return [str(each.loop_var.name) for each in nodes(function.body, tirx.For) if each.kind != VECTORIZED]


def test_loops_over_contiguous_memory_are_one() -> None:
    assert loops(one(op.tanh)) == ["vector"]
    assert loops(one(biased)) == ["vector", "i1", "i0"]


def test_pieces_of_rows_share_their_loops() -> None:
    """Rows above, the padded rows between their left and right rims, rows below."""
    pad = one(lambda x: op.nn.pad(x, [0, 0, 0, 0, 1, 2, 3, 3]))
    above = below = ["vector", "i0_i1"]
    assert loops(pad) == [*above, "vector", "i2", "i1", "i0", *below]
