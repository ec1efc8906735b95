"""Matrix products of every layout against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax

from schedules import Machine
from schedules.ir.stages import Kernel
from schedules.ir.tir import tirx, tvm
from schedules.matmul.rule import Matmul
from schedules.matmul.tiling import MatmulWorkload, best_tile, fits, max_rows
from schedules.selection.apply import apply_schedules, record_key
from tests.schedules.harness import (
    AVX2,
    AVX512,
    MACHINES,
    Array,
    assembly,
    evaluate,
    lowered,
    normal,
    run,
    runnable,
    scheduled,
    target_of,
    virtual_machine,
)

op = relax.op
EXTENTS = st.sampled_from([1, 2, 3, 5, 7, 13, 16, 17, 31, 33, 64, 67])


def close(result: Array, expected: Array, depth: int) -> None:
    """A float32 sum of `depth` products of standard normals: error grows like sqrt(depth) roundings of sqrt(depth)."""
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=4e-7 * (depth + 10))


def product(builder: Any, a: Any, b: Any) -> Any:
    return builder.emit(op.matmul(a, b))


@pytest.mark.parametrize("target", runnable())
@settings(max_examples=7, deadline=None)
@given(rows=EXTENTS, columns=EXTENTS, depth=EXTENTS)
def test_any_size(target: str, rows: int, columns: int, depth: int) -> None:
    a, b = normal((rows, depth)), normal((depth, columns), 1)
    close(evaluate(product, [a, b], target), a.astype("float64") @ b, depth)


@pytest.mark.parametrize("target", runnable())
@pytest.mark.parametrize(
    ("a_shape", "b_shape"), [((2, 3, 19, 24), (2, 3, 24, 35)), ((3, 7, 20), (20, 33)), ((1, 1, 40), (40, 65))]
)
def test_batches(target: str, a_shape: tuple[int, ...], b_shape: tuple[int, ...]) -> None:
    a, b = normal(a_shape), normal(b_shape, 1)
    close(evaluate(product, [a, b], target, "matmul"), a.astype("float64") @ b, a_shape[-1])


def _einsum(subscripts: str) -> Any:
    return lambda builder, a, b: builder.emit(op.einsum([a, b], subscripts))


@pytest.mark.parametrize("target", runnable())
@pytest.mark.parametrize(
    ("subscripts", "a_shape", "b_shape"),
    [
        ("bik,bjk->bij", (2, 19, 24), (2, 35, 24)),
        ("ki,kj->ij", (24, 19), (24, 35)),
        ("bhid,bhjd->bhij", (2, 3, 17, 16), (2, 3, 21, 16)),
        ("ki,jk->ji", (24, 19), (35, 24)),
    ],
)
def test_transposed_operands(target: str, subscripts: str, a_shape: tuple[int, ...], b_shape: tuple[int, ...]) -> None:
    a, b = normal(a_shape), normal(b_shape, 1)
    expected = np.einsum(subscripts, a.astype("float64"), b)
    close(evaluate(_einsum(subscripts), [a, b], target, "matmul"), expected, 24)


@pytest.mark.parametrize("target", runnable())
@pytest.mark.parametrize("rows", [1, 6, 29])
def test_epilogues_are_fused(target: str, rows: int) -> None:
    a, b, bias, rest = normal((rows, 24)), normal((24, 37), 1), normal((37,), 2), normal((rows, 37), 3)

    def build(builder: Any, a: Any, b: Any, bias: Any, rest: Any) -> Any:
        sums = builder.emit(op.add(builder.emit(op.matmul(a, b)), bias))
        return builder.emit(op.add(builder.emit(op.nn.silu(sums)), rest))

    sums = a.astype("float64") @ b + bias
    result = evaluate(build, [a, b, bias, rest], target, "matmul")
    close(result, sums / (1 + np.exp(-sums)) + rest, 24)


@pytest.mark.parametrize("target", runnable())
def test_symbolic_extents(target: str) -> None:
    rows, columns, depth = (tirx.Var(name, "int64") for name in ("rows", "columns", "depth"))
    mod, report = scheduled(product, [((rows, depth), "float32"), ((depth, columns), "float32")], target)
    assert report.by_rule().get("matmul"), report
    machine = virtual_machine(mod, target)
    for shape in ((1, 1, 1), (7, 5, 9), (29, 67, 33), (130, 131, 8), (0, 4, 4)):
        a, b = normal((shape[0], shape[2])), normal((shape[2], shape[1]), 1)
        result = machine["main"](tvm.runtime.tensor(a), tvm.runtime.tensor(b)).numpy()
        close(result, a.astype("float64") @ b, shape[2])


@pytest.mark.parametrize("target", runnable())
def test_any_config_gives_the_same(target: str) -> None:
    a, b = normal((23, 40)), normal((40, 70), 1)
    rule, machine = Matmul(), target_of(target).machine
    mod = lowered(product, [(a.shape, "float32"), (b.shape, "float32")], target)
    work = rule.match(Kernel.of(mod["matmul"]), machine)
    assert work is not None
    space = list(rule.space(work, machine))
    assert rule.default(work, machine) in rule.space(work, machine)
    for config in space[:: max(1, len(space) // 5)]:
        tuned, report = apply_schedules(mod, machine, {record_key(rule, work): config})
        assert report.kernels[0].source == "record"
        close(run(tuned, target, [a, b]), a.astype("float64") @ b, 40)


@pytest.mark.parametrize(("target", "register"), [(AVX2, "%ymm"), (AVX512, "%zmm")])
def test_the_inner_loop_multiplies_and_adds_in_full_registers(target: str, register: str) -> None:
    mod, _ = scheduled(product, [((96, 64), "float32"), ((64, 128), "float32")], target)
    lines = [line for line in assembly(mod, target).splitlines() if "vfmadd" in line]
    assert sum(register in line for line in lines) >= 12
    assert all(register in line for line in lines), "a partial register in a product without a rest"


@pytest.mark.parametrize("name", MACHINES)
def test_tiles_fit_the_registers(name: str) -> None:
    machine = target_of(name).machine
    for rows in (1, 2, 7, 16, 197, 0):
        for columns in (1, 17, 64, 1000, 0):
            row, vector = best_tile(_work(rows, columns), machine)
            assert row == 1 or fits(row, vector, machine)


def _work(rows: int, columns: int) -> Any:
    return MatmulWorkload(1, rows, columns, 64, "rows", 0, "float32", "float32", 0)


def test_a_small_machine_gets_a_small_tile() -> None:
    rows, vectors = best_tile(_work(512, 512), Machine(vector_bits=128, vector_registers=8))
    assert rows * vectors + vectors + 1 <= 8


@pytest.mark.parametrize("target", runnable())
def test_a_long_sum_in_blocks(target: str) -> None:
    """Rows that fill no tile, and a last block that is shorter."""
    depth = 1000
    a, b = normal((50, depth)), normal((depth, 40), 1)
    rule, machine = Matmul(), target_of(target).machine
    mod = lowered(product, [(a.shape, "float32"), (b.shape, "float32")], target)
    work = rule.match(Kernel.of(mod["matmul"]), machine)
    assert work is not None
    config = rule.default(work, machine).replace(depth=256)
    tuned, report = apply_schedules(mod, machine, {record_key(rule, work): config})
    assert not report.failures
    close(run(tuned, target, [a, b]), a.astype("float64") @ b, depth)


def test_rows_that_share_a_cache_set_are_few() -> None:
    """4096 bytes apart, all rows fall in one set of an 8-way cache of 32 KiB."""
    machine = target_of(AVX512).machine
    far = MatmulWorkload(1, 512, 512, 1024, "rows", 0, "float32", "float32", 0, a_stride=1024)
    near = MatmulWorkload(1, 512, 512, 1024, "rows", 0, "float32", "float32", 0, a_stride=1040)
    assert best_tile(far, machine)[0] <= 6
    assert best_tile(near, machine)[0] >= best_tile(far, machine)[0]


def test_rows_that_share_a_set_of_a_first_cache_of_12_ways_are_counted_as_such() -> None:
    """48 KiB: a way is 4 KiB, so rows 6 KiB apart fall into two sets of 12 lines and not into one of 8."""
    work = MatmulWorkload(1, 128, 384, 1536, "panels", 32, "float32", "float32", 0, a_stride=1536)
    assert max_rows(work, Machine(l1_bytes=48 << 10)) == 20
    assert max_rows(work, Machine(l1_bytes=32 << 10)) == 12
