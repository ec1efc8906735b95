"""Reductions in two steps: right for sizes without whole parts, and the same numbers for every number of cores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tvm import relax, tirx

from schedules.ir.tir import structural_walk
from schedules.selection.apply import apply_schedules
from tests.schedules.harness import Array, lowered, run, runnable, target_of

pytestmark = pytest.mark.parametrize("target", runnable()[-1:])
_CORES = (1, 2, 3, 8, 32)


def _results(build: Any, array: Array, shape: list[Any], target: str) -> dict[int, Array]:
    """Result of the kernel compiled for this number of cores."""
    mod = lowered(build, [(shape, str(array.dtype))], target)
    found = {}
    for cores in _CORES:
        scheduled, report = apply_schedules(mod, target_of(target).machine.model_copy(update={"cores": cores}))
        assert not report.failures, report.failures
        found[cores] = run(scheduled, target, [array])
    return found


def _parallel_extents(build: Any, shape: list[Any], target: str, cores: int) -> list[int]:
    mod, _ = apply_schedules(
        lowered(build, [(shape, "float32")], target), target_of(target).machine.model_copy(update={"cores": cores})
    )
    extents: list[int] = []

    def visit(loop: Any) -> None:
        if loop.kind == tirx.ForKind.PARALLEL:
            extents.append(int(loop.extent))

    for _, function in mod.functions_items():
        if isinstance(function, tirx.PrimFunc):
            structural_walk(function.body, (tirx.For, visit))
    return extents


def _same(found: dict[int, Array]) -> None:
    for cores in _CORES[2:]:
        np.testing.assert_array_equal(found[cores], found[2])


def _sum(axes: list[int]) -> Any:
    return lambda b, x: b.emit(relax.op.sum(x, axis=axes))


def _max(axes: list[int]) -> Any:
    return lambda b, x: b.emit(relax.op.max(x, axis=axes))


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((1_000_003,), [0]),
        ((3, 300_007), [1]),
        ((1009, 997), [0, 1]),
        ((70_001, 17), [0]),
        ((3, 5, 331, 333), [0, 2, 3]),
        ((200_003, 3), [0]),
        ((2, 600_000), [0, 1]),
    ],
)
def test_sums_and_maxima(shape: tuple[int, ...], axes: list[int], target: str) -> None:
    array = np.random.default_rng(len(shape)).standard_normal(shape).astype("float32")
    wanted = array.astype("float64").sum(tuple(axes))
    found = _results(_sum(axes), array, list(shape), target)
    bound = 1e-6 * np.abs(array.astype("float64")).sum(tuple(axes))
    for each in found.values():
        assert np.all(np.abs(each - wanted) <= bound)
    _same(found)
    for each in _results(_max(axes), array, list(shape), target).values():
        np.testing.assert_array_equal(each, array.max(tuple(axes)))


@pytest.mark.parametrize("size", [1, 63, 300_001])
def test_sum_of_an_unknown_number_of_pairs(size: int, target: str) -> None:
    array = np.random.default_rng(size).standard_normal((size, 2)).astype("float32")
    for each in _results(_sum([0, 1]), array, [tirx.Var("n", "int64"), 2], target).values():
        assert abs(each - array.sum(dtype="float64")) <= 1e-6 * np.abs(array).sum(dtype="float64")


@pytest.mark.parametrize("size", [1, 63, 16_384, 1_234_567])
def test_sum_of_unknown_length(size: int, target: str) -> None:
    array = np.random.default_rng(size).standard_normal((2, size)).astype("float32")
    found = _results(_sum([1]), array, [2, tirx.Var("n", "int64")], target)
    wanted = array.astype("float64").sum(1)
    for each in found.values():
        assert np.all(np.abs(each - wanted) <= 1e-6 * np.abs(array).sum(1))
    _same(found)


def test_integers_and_products(target: str) -> None:
    array = np.random.default_rng(0).integers(-9, 9, (3, 250_001)).astype("int32")
    for each in _results(_sum([1]), array, [3, 250_001], target).values():
        np.testing.assert_array_equal(each, array.sum(1))
    factors = np.random.default_rng(1).choice(np.array([-1, 1, 1, 1], "float32"), 500_003)
    factors[::4999] = 2
    factors[7::4999] = 0.5
    for each in _results(lambda b, x: b.emit(relax.op.prod(x)), factors, [500_003], target).values():
        assert each == factors.astype("float64").prod()


def test_one_result_gives_every_core_a_part(target: str) -> None:
    assert max(_parallel_extents(_sum([0]), [4_000_000], target, 32)) >= 32
    assert max(_parallel_extents(_sum([0]), [1 << 16, 16], target, 32)) >= 32
    assert _parallel_extents(_sum([0]), [4096], target, 32) == []
