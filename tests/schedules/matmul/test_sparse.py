"""Products that skip zeros, against float64 over random shapes and patterns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax

from schedules.instructions.select_lanes import choices_of
from schedules.ir.tir import tirx, tvm
from schedules.matmul.packed_operand import pack_panels
from schedules.matmul.sparse import (
    Groups,
    matmul_n_of_m,
    matmul_sparse,
    max_kept,
    pack_blocks,
    pack_groups_of,
    share_kept,
    share_that_pays,
    sparse_form,
)
from tests.schedules.harness import AVX512, Array, assembly, normal, runnable, scheduled, target_of, virtual_machine

EXTENTS = st.sampled_from([1, 2, 7, 16, 33, 64, 70, 132])


def blocks_gone(depth: int, columns: int, width: int, zeros: float, seed: int = 5) -> Array:
    """Random weights with that share of their blocks of 1 x `width` zero; one panel of several wholly so."""
    weight = normal((depth, columns), seed)
    gone = np.random.default_rng(seed).random((depth, -(-columns // width))) < zeros
    gone[:, 1:2] = True
    return np.where(np.repeat(gone, width, 1)[:, :columns], np.float32(0), weight)


def n_of_m(depth: int, columns: int, groups: Groups) -> Array:
    """Random weights with the largest `keep` of every `of` left."""
    weight = normal((depth // groups.of, groups.of, columns), 3)
    order = np.argsort(np.abs(weight), axis=1)
    np.put_along_axis(weight, order[:, : groups.of - groups.keep], 0, axis=1)
    return weight.reshape(depth, columns)


def product(kernel: Any, operands: tuple[Array, ...], **numbers: int) -> Callable[[Any, Any], Any]:
    """A function that builds the product with the packed weight, and one added."""

    def build(builder: Any, data: Any) -> Any:
        constants = [relax.const(tvm.runtime.tensor(each)) for each in operands]
        attributes = {"op_pattern": 4}
        call = builder.call_te(
            kernel, data, *constants, **numbers, primfunc_name_hint="matmul", primfunc_attrs=attributes
        )
        return builder.emit(relax.op.add(builder.emit(call), relax.const(1.0, "float32")))

    return build


def of_blocks(weight: Array, width: int) -> Callable[[Any, Any], Any]:
    packed = pack_blocks(pack_panels(weight, width))
    return product(matmul_sparse, (packed.values, packed.index), columns=weight.shape[1], longest=packed.longest)


def of_groups(weight: Array, groups: Groups, target: str) -> Callable[[Any, Any], Any]:
    lanes = target_of(target).machine.lanes("float32")
    operands = pack_groups_of(pack_panels(weight, lanes), groups)
    return product(matmul_n_of_m, operands, columns=weight.shape[1], keep=groups.keep, of=groups.of)


def check(build: Any, weight: Array, data: Array, target: str, rule: str, shape: tuple[Any, ...] | None = None) -> None:
    mod, report = scheduled(build, [(shape or data.shape, "float32")], target)
    assert report.by_rule().get(rule), report
    machine = virtual_machine(mod, target)
    got = machine["main"](tvm.runtime.tensor(data)).numpy()
    wide = weight.astype(np.float64)
    bound = 1e-6 * (np.abs(data.astype(np.float64)) @ np.abs(wide) + 1)
    assert np.all(np.abs(got - (data.astype(np.float64) @ wide + 1)) <= bound)


@pytest.mark.parametrize("target", runnable())
@settings(max_examples=4, deadline=None)
@given(rows=EXTENTS, depth=EXTENTS, columns=EXTENTS, vectors=st.integers(1, 2), zeros=st.sampled_from([0, 0.5, 0.9, 1]))
def test_any_blocks(target: str, rows: int, depth: int, columns: int, vectors: int, zeros: float) -> None:
    width = vectors * target_of(target).machine.lanes("float32")
    weight = blocks_gone(depth, columns, width, zeros)
    check(of_blocks(weight, width), weight, normal((rows, depth)), target, "matmul-sparse")


@pytest.mark.parametrize("target", runnable())
@settings(max_examples=4, deadline=None)
@given(
    rows=EXTENTS,
    count=st.sampled_from([1, 3, 8, 17]),
    columns=EXTENTS,
    keep=st.integers(1, 4),
    of=st.sampled_from([4, 8, 16]),
)
def test_any_n_of_m(target: str, rows: int, count: int, columns: int, keep: int, of: int) -> None:
    if of not in choices_of(target_of(target).machine):
        of = 8
    groups = Groups(keep, of)
    weight = n_of_m(count * of, columns, groups)
    assert max_kept(weight, of) == keep
    check(of_groups(weight, groups, target), weight, normal((rows, count * of)), target, "matmul-n-of-m")


@pytest.mark.parametrize("target", runnable())
def test_symbolic_rows(target: str) -> None:
    rows, lanes = tirx.Var("n", "int64"), target_of(target).machine.lanes("float32")
    weight = blocks_gone(64, 20, lanes, 0.5)
    check(of_blocks(weight, lanes), weight, normal((5, 3, 64)), target, "matmul-sparse", (rows, 3, 64))
    groups = Groups(2, 8)
    weight = n_of_m(64, 20, groups)
    check(of_groups(weight, groups, target), weight, normal((5, 3, 64)), target, "matmul-n-of-m", (rows, 3, 64))


@pytest.mark.skipif(AVX512 not in runnable(), reason="this machine has no AVX-512")
def test_each_number_is_a_permutation_and_a_multiply_add() -> None:
    weight = n_of_m(64, 16, Groups(2, 4))
    mod, _ = scheduled(of_groups(weight, Groups(2, 4), AVX512), [((8, 64), "float32")], AVX512)
    text = assembly(mod, AVX512)
    # A loop over groups of 2 numbers for 8 rows.
    assert text.count("vperm") == text.count("vfmadd") >= 16
    assert "vgather" not in text


@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64-v4", "graviton3"])
def test_the_form_follows_from_where_zeros_are(target: str) -> None:
    machine = target_of(target).machine
    lanes = machine.lanes("float32")
    assert sparse_form(normal((64, 256)), 64, machine) is None
    many = sparse_form(blocks_gone(64, 256, lanes, 0.7), 64, machine)
    assert many is not None
    assert many.groups is None
    threshold = share_that_pays(machine, 64)
    assert 0.1 < threshold < 0.6
    scattered = np.where(np.random.default_rng(0).random((64, 256)) < 0.5, np.float32(0), normal((64, 256)))
    assert share_kept(pack_panels(scattered, lanes)) > 0.9
    assert sparse_form(scattered, 64, machine) is None
    quarter = sparse_form(n_of_m(64, 256, Groups(1, 4)), 64, machine)
    assert (quarter is not None and quarter.groups == Groups(1, 4)) == (4 in choices_of(machine))
    # Half of the numbers pay only where reading weights takes longer than multiplying with them.
    half = n_of_m(64, 256, Groups(2, 4))
    assert sparse_form(half, 64, machine) is None
    assert (sparse_form(half, 1, machine) is not None) == (4 in choices_of(machine))
