"""Loops whose index is taken apart: their numbers, and that they run in whole runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import te

from schedules.ir.access import coefficient_of, with_plain_indices
from schedules.ir.stages import Kernel
from schedules.ir.tir import tirx
from schedules.stages.loops import split_axes, split_branches
from tests.schedules.harness import AVX512, Build, evaluate, lowered, runnable

EXTENTS = st.sampled_from([1, 2, 3, 7, 16, 19])


def emitted(compute: Callable[[Any], Any]) -> Build:
    return lambda builder, x: builder.emit(builder.call_te(compute, x))


def stage_of(build: Build, shape: tuple[int, ...]) -> Any:
    mod = lowered(build, [(shape, "float32")], AVX512)
    [function] = [each for _, each in mod.functions_items() if isinstance(each, tirx.PrimFunc)]
    return Kernel.of(function).simple_stages[-1]


def unpacked(rows: int, channels: int, block: int) -> Build:
    return emitted(lambda x: te.compute((rows, channels), lambda i, c: x[c // block, i, c % block]))


@pytest.mark.parametrize("target", runnable())
@settings(max_examples=7, deadline=None)
@given(rows=EXTENTS, channels=st.integers(1, 70), block=st.sampled_from([2, 4, 5, 8, 16]))
def test_blocks_of_channels(target: str, rows: int, channels: int, block: int) -> None:
    x = np.random.default_rng(0).standard_normal((-(-channels // block), rows, block), dtype="float32")
    expected = x.transpose(1, 0, 2).reshape(rows, -1)[:, :channels]
    np.testing.assert_array_equal(evaluate(unpacked(rows, channels, block), [x], target), expected)


@pytest.mark.parametrize("target", runnable())
@settings(max_examples=5, deadline=None)
@given(rows=EXTENTS, groups=st.sampled_from([2, 4, 5, 8]), size=st.sampled_from([1, 4, 6, 16]))
def test_shuffled_channels(target: str, rows: int, groups: int, size: int) -> None:
    x = np.random.default_rng(0).standard_normal((rows, groups * size), dtype="float32")
    build = emitted(lambda t: te.compute(x.shape, lambda i, c: t[i, c % groups * size + c // groups]))
    expected = x.reshape(rows, groups, size).swapaxes(1, 2).reshape(x.shape)
    np.testing.assert_array_equal(evaluate(build, [x], target), expected)


@pytest.mark.parametrize("target", runnable())
@settings(max_examples=5, deadline=None)
@given(rows=EXTENTS, blocks=st.sampled_from([1, 2, 5]), block=st.sampled_from([4, 16]), largest=st.booleans())
def test_reductions_over_blocks(target: str, rows: int, blocks: int, block: int, largest: bool) -> None:
    x = np.random.default_rng(0).standard_normal((blocks, rows, block), dtype="float32")

    def compute(t: Any) -> Any:
        c = te.reduce_axis((0, blocks * block), name="c")
        combine = te.max if largest else te.sum
        return te.compute((rows,), lambda i: combine(t[c // block, i, c % block], axis=c))

    exact = x.astype("float64")
    expected = exact.max((0, 2)) if largest else exact.sum((0, 2))
    np.testing.assert_allclose(evaluate(emitted(compute), [x], target), expected, rtol=1e-5, atol=1e-5)


def test_an_axis_that_two_factors_take_apart_is_split_twice() -> None:
    heads = emitted(lambda x: te.compute((3, 384), lambda i, c: x[c // 192, i, c // 32 % 6, c % 32]))
    [piece] = split_axes(stage_of(heads, (2, 3, 6, 32)))
    assert [axis.extent for axis in piece.axes] == [3, 2, 6, 32]
    assert "//" not in str(piece.body)
    assert "%" not in str(piece.body)


def test_what_a_factor_leaves_is_a_piece_of_its_own() -> None:
    pieces = split_axes(stage_of(unpacked(3, 37, 16), (3, 3, 16)))
    assert [[axis.extent for axis in piece.axes] for piece in pieces] == [[3, 2, 16], [3, 5]]
    assert not any("//" in str(piece.body) for piece in pieces)


def test_short_runs_stay() -> None:
    stage = stage_of(unpacked(3, 8, 2), (4, 3, 2))
    assert split_axes(stage) == [stage]


@pytest.mark.parametrize("target", runnable())
@settings(max_examples=7, deadline=None)
@given(first=st.integers(1, 40), second=st.integers(1, 40), block=st.sampled_from([4, 8, 16]), data=st.data())
def test_concatenation_in_blocks_that_do_not_meet(
    target: str, first: int, second: int, block: int, data: st.DataObject
) -> None:
    """Channels of two tensors, either of them in blocks, one behind the other, in blocks again, filled up by 0."""
    positions = data.draw(EXTENTS)
    blocked = data.draw(st.tuples(st.booleans(), st.booleans()))
    random = np.random.default_rng(0)
    plain = [random.standard_normal((size, positions), dtype="float32") for size in (first, second)]

    def in_blocks(x: Any) -> Any:
        filled = np.zeros((-(-len(x) // block) * block, positions), "float32")
        filled[: len(x)] = x
        return np.ascontiguousarray(filled.reshape(-1, block, positions).swapaxes(1, 2))

    def element(x: Any, is_blocked: bool, c: Any, i: Any) -> Any:
        return x[c // block, i, c % block] if is_blocked else x[c, i]

    channels = first + second

    def compute(x: Any, y: Any) -> Any:
        def joined(c: Any, i: Any) -> Any:
            return tirx.if_then_else(first <= c, element(y, blocked[1], c - first, i), element(x, blocked[0], c, i))

        def packed(outer: Any, i: Any, inner: Any) -> Any:
            c = outer * block + inner
            return tirx.if_then_else(c < channels, joined(c, i), tirx.FloatImm("float32", 0.0))

        return te.compute((-(-channels // block), positions, block), packed)

    given = [in_blocks(x) if each else x for x, each in zip(plain, blocked, strict=True)]
    result = evaluate(lambda builder, x, y: builder.emit(builder.call_te(compute, x, y)), given, target)
    np.testing.assert_array_equal(result, in_blocks(np.concatenate(plain)))


def test_blocks_that_do_not_meet_are_copied_without_branches_and_divisions() -> None:
    def compute(x: Any) -> Any:
        zero = tirx.FloatImm("float32", 0.0)
        return te.compute(
            (3, 5, 16),
            lambda outer, i, inner: tirx.if_then_else(
                (outer * 16 + inner >= 1),
                x[(outer * 16 + inner - 1) // 16, i, (outer * 16 + inner - 1) % 16],
                zero,
            ),
        )

    stage = stage_of(emitted(compute), (3, 5, 16))
    pieces = [part for piece in split_branches(stage) for part in split_axes(with_plain_indices(piece))]
    assert sorted([axis.extent for axis in piece.axes] for piece in pieces) == [
        [1, 5, 1],
        [1, 5, 15],
        [2, 5, 1],
        [2, 5, 15],
    ]
    assert not any("//" in str(piece.body) or "if_then_else" in str(piece.body) for piece in pieces)


@pytest.mark.parametrize("target", runnable())
@settings(max_examples=6, deadline=None)
@given(
    rows=EXTENTS,
    size=st.sampled_from([2, 5, 16, 40]),
    before=st.integers(0, 19),
    after=st.integers(0, 19),
    mode=st.sampled_from(["reflect", "edge"]),
)
def test_mirrored_and_repeated_edges(target: str, rows: int, size: int, before: int, after: int, mode: str) -> None:
    x = np.random.default_rng(0).standard_normal((rows, size), dtype="float32")
    period = 2 * size - 2

    def mirrored(j: Any) -> Any:
        at = (j - before + 99 * period) % period
        return tirx.min(at, period - at)

    def place(j: Any) -> Any:
        return mirrored(j) if mode == "reflect" else tirx.max(tirx.min(j - before, size - 1), 0)

    build = emitted(lambda t: te.compute((rows, before + size + after), lambda i, j: t[i, place(j)]))
    expected = np.pad(x, ((0, 0), (before, after)), mode=mode)  # type: ignore[call-overload]
    np.testing.assert_array_equal(evaluate(build, [x], target), expected)


def test_pieces_of_mirrored_edges_walk_in_straight_lines() -> None:
    build = emitted(lambda t: te.compute((9, 80), lambda i, j: t[i, tirx.min((j + 90) % 100, 100 - (j + 90) % 100)]))
    pieces = split_axes(stage_of(build, (9, 51)))
    assert [piece.axes[1].extent for piece in pieces] == [10, 51, 19]
    assert [coefficient_of(piece.loads[0].indices[1], piece.axes[1].var) for piece in pieces] == [-1, 1, -1]
