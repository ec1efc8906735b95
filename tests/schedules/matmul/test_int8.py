"""Products of 8-bit integers: exact."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax

from schedules.instructions.dot_products.operation import DOT_U8S8
from schedules.ir.tir import tirx, tvm
from schedules.matmul.packed_operand import pack_words
from schedules.matmul.words import matmul_words
from tests.schedules.harness import Array, assembly, presets_with, runnable, scheduled, virtual_machine
from tests.schedules.matmul.test_bf16 import width_of

WIDE, NARROW = presets_with("avx512vnni")[:1], presets_with("avxvnni")[:1]
TARGETS = [*runnable(), *WIDE, *NARROW]
DOTS = [*((name, "%zmm") for name in WIDE), *((name, "%ymm") for name in NARROW)]
EXTENTS = st.sampled_from([1, 2, 7, 16, 19, 33, 64, 70, 132])


def build(weight: Array, width: int) -> Any:
    packed = pack_words(weight, width, DOT_U8S8.group)

    def make(builder: Any, data: Any) -> Any:
        call = builder.call_te(
            partial(matmul_words, operation=DOT_U8S8),
            data,
            relax.const(tvm.runtime.tensor(packed)),
            weight.shape[1],
            primfunc_name_hint="matmul",
            primfunc_attrs={"op_pattern": 4},
        )
        return builder.emit(relax.op.add(builder.emit(call), relax.const(5, "int32")))

    return make


def integers(shape: tuple[int, ...], dtype: str, seed: int) -> Array:
    """Random, with many at the limits, where narrow sums would saturate."""
    limits = np.iinfo(dtype)
    generator = np.random.default_rng(seed)
    values = generator.integers(limits.min, limits.max, shape, endpoint=True)
    return np.where(generator.random(shape) < 0.5, limits.max, values).astype(dtype)


def expected(data: Array, weight: Array) -> Array:
    shift = 128 if data.dtype == np.int8 else 0
    return (data.astype(np.int64) + shift) @ weight.astype(np.int64) + 5


def run(mod: Any, target: str, data: Array) -> Array:
    machine = virtual_machine(mod, target)
    return np.asarray(machine["main"](tvm.runtime.tensor(data)).numpy())


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=5, deadline=None)
@given(rows=EXTENTS, depth=EXTENTS, columns=EXTENTS)
def test_any_size(target: str, dtype: str, rows: int, depth: int, columns: int) -> None:
    data, weight = integers((rows, depth), dtype, 0), integers((depth, columns), "int8", 1)
    mod, report = scheduled(build(weight, width_of(target)), [(data.shape, dtype)], target)
    assert report.by_rule().get("matmul-int8"), report
    np.testing.assert_array_equal(run(mod, target, data), expected(data, weight))


@pytest.mark.parametrize("target", TARGETS)
def test_symbolic_rows(target: str) -> None:
    weight = integers((64, 40), "int8", 1)
    mod, report = scheduled(build(weight, width_of(target)), [((tirx.Var("n", "int64"), 3, 64), "int8")], target)
    assert report.by_rule().get("matmul-int8"), report
    data = integers((5, 3, 64), "int8", 2)
    np.testing.assert_array_equal(run(mod, target, data), expected(data, weight))


@pytest.mark.parametrize(("target", "register"), DOTS)
def test_the_inner_loop_holds_the_instruction(target: str, register: str) -> None:
    width = width_of(target)
    mod, _ = scheduled(build(integers((64, 64), "int8", 0), width), [((32, 64), "uint8")], target)
    lines = [line for line in assembly(mod, target).splitlines() if "vpdpbusd" in line]
    assert len(lines) >= 8
    assert all(register in line for line in lines)


@pytest.mark.skipif("x86-64-v3" not in TARGETS, reason="this machine has no AVX2")
def test_without_it_pairs_are_summed_in_32_bits() -> None:
    mod, _ = scheduled(build(integers((64, 64), "int8", 0), 16), [((32, 64), "uint8")], "x86-64-v3")
    text = assembly(mod, "x86-64-v3")
    assert "vpmaddwd" in text
    assert "vpmaddubsw" not in text
