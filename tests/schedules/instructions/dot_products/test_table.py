"""Dot-product instructions by machine, and the code of each operation against numpy."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import targets
from schedules.instructions.dot_products.operation import (
    DOT_BF16,
    DOT_F16,
    DOT_S8S8,
    DOT_S8U8,
    DOT_U8S8,
    DOT_U8U8,
    DOT_WORDS,
    SUM_F16,
    Operation,
)
from schedules.instructions.dot_products.table import (
    dot_instructions,
    multiplies_bytes,
    operation_of,
    sums_signed,
    vector_instructions,
    widens_bytes,
)
from schedules.instructions.rounding import bfloat16_bits
from schedules.ir.tir import tirx, tvm
from schedules.machine import Machine
from schedules.selection.apply import apply_schedules
from tests.schedules.blocked import Array

# isort: split
from tvm import te


def machine_of(target: str) -> Machine:
    return targets.get(target, cores=1).machine


@pytest.mark.parametrize(
    ("target", "unsigned", "signed"),
    [
        ("znver4", ["vpdpbusd"], ["vpdpbusd"]),
        ("alderlake", ["vpdpbusd"], ["vpdpbusd"]),
        ("lunarlake", ["vpdpbusd", "vpdpbssd"], ["vpdpbssd", "vpdpbusd"]),
        ("x86-64-v3", [], []),
        ("raspberry-pi-5", ["sdot"], ["sdot"]),
        ("graviton3", ["usmmla", "usdot", "smmla", "sdot"], ["smmla", "sdot", "usmmla", "usdot"]),
    ],
)
def test_products_of_bytes(target: str, unsigned: list[str], signed: list[str]) -> None:
    """Instructions for exactly these types come before those that need shifted operands."""
    machine = machine_of(target)
    assert [each.name for each in dot_instructions(machine, "uint8", "int8")] == unsigned
    assert [each.name for each in dot_instructions(machine, "int8", "int8")] == signed
    assert multiplies_bytes(machine) == bool(unsigned)
    assert all(each.rows == 1 for each in vector_instructions(machine, "int8", "int8"))


def test_without_products_of_bytes() -> None:
    assert widens_bytes(machine_of("x86-64-v3"))
    assert not widens_bytes(machine_of("alderlake"))
    assert operation_of(machine_of("x86-64-v3"), "int8", "int8") is DOT_U8S8
    assert operation_of(machine_of("raspberry-pi-5"), "uint8", "int8") is DOT_S8S8


def test_signed_bytes_need_no_shift_where_an_instruction_takes_them() -> None:
    zen, newer = machine_of("znver4"), machine_of("lunarlake")
    assert not sums_signed(zen)
    assert sums_signed(newer)
    assert operation_of(newer, "int8", "int8").shift("int8") == 0
    assert operation_of(newer, "uint8", "int8") is DOT_U8S8


def test_a_rate_belongs_to_the_processor() -> None:
    zen = machine_of("znver4")
    slower = zen.model_copy(update={"rates": (("vdpbf16ps", 0.5),)})
    [instruction] = dot_instructions(zen, "bfloat16", "bfloat16")
    assert (instruction.rate_on(zen), instruction.rate_on(slower)) == (2.0, 0.5)


@pytest.mark.parametrize(
    ("processor", "features", "operation", "lanes", "instruction"),
    [
        ("lunarlake", {"avxvnniint8"}, DOT_S8S8, 8, "vpdpbssd"),
        ("lunarlake", {"avxvnniint8"}, DOT_S8U8, 8, "vpdpbsud"),
        ("lunarlake", {"avxvnniint8"}, DOT_U8U8, 8, "vpdpbuud"),
        ("diamondrapids", {"avx10.2"}, DOT_S8S8, 16, "vpdpbssd"),
        ("diamondrapids", {"avx10.2"}, DOT_S8U8, 16, "vpdpbsud"),
        ("diamondrapids", {"avx10.2"}, DOT_U8U8, 16, "vpdpbuud"),
        ("diamondrapids", {"avx10.2"}, DOT_F16, 16, "vdpphps"),
        ("sapphirerapids", {"avx512fp16", "avx512vl"}, SUM_F16, 16, "vfmadd231ph|vfmadd213ph"),
    ],
)
def test_instructions_of_processors_that_are_not_here(
    processor: str, features: set[str], operation: Operation, lanes: int, instruction: str
) -> None:
    machine = Machine(
        architecture="x86_64", vector_bits=32 * lanes, features=frozenset(features) | {"avx2", "avx512bw"}
    )
    kernel = kernel_of(operation, lanes, tirx.const(7, operation.total))
    mod, report = apply_schedules(tvm.IRModule({"kernel": kernel}), machine)
    assert not report.failures
    target = tvm.target.Target({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": processor})
    code = str(tvm.compile(mod, target=target).mod.inspect_source("asm"))
    assert re.search(instruction, code)


def kernel_of(operation: Operation, lanes: int, total: Any) -> Any:
    """The sums of products of words, one a lane, on a total."""
    left, right = (te.placeholder((lanes,), "int32", name) for name in "ab")
    result = te.compute((lanes,), lambda i: operation(total, left(i), right(i)), "result")
    return te.create_prim_func([left, right, result]).with_attr("global_symbol", "kernel")


def words_of(operation: Operation, lanes: int) -> tuple[Array, Array, Array]:
    """Random words a and b, and what is expected on a total of 7."""
    random = np.random.default_rng(0)
    a: Array
    b: Array
    if operation is DOT_BF16:
        a, b = (bfloat16_bits(random.standard_normal((lanes, 2)).astype("float32")) for _ in range(2))
        wide = [(each.astype(np.uint32) << 16).view("float32").astype("float64") for each in (a, b)]
    elif operation is DOT_WORDS:
        a, b = (random.integers(-32768, 32768, (lanes, 1)) for _ in range(2))
        return a[:, 0].astype("int32"), (b[:, 0] & 0xFFFF).astype("int32"), 7 + a[:, 0] * b[:, 0]
    elif operation is DOT_F16:
        a, b = (random.integers(-8, 8, (lanes, 2)).astype("float16") for _ in range(2))
        wide = [each.astype("float64") for each in (a, b)]
    else:
        a, b = (
            random.integers(np.iinfo(each).min, np.iinfo(each).max, (lanes, 4), endpoint=True).astype(each)
            for each in (operation.a, operation.b)
        )
        wide = [each.astype("int64") for each in (a, b)]
    words = [np.ascontiguousarray(each).view("int32")[:, 0] for each in (a, b)]
    return words[0], words[1], 7 + (wide[0] * wide[1]).sum(1)


@pytest.mark.parametrize(
    "operation",
    [DOT_BF16, DOT_F16, DOT_U8S8, DOT_S8S8, DOT_S8U8, DOT_U8U8, DOT_WORDS],
    ids=lambda each: each.short,
)
@pytest.mark.parametrize("simulated", [False, True])
def test_any_number_of_lanes(operation: Operation, *, simulated: bool) -> None:
    """In the instructions of this machine and, where its processor is simulated, in the plain forms."""
    target = targets.get("host", cores=1)
    machine = target.machine
    if simulated:
        machine = machine.model_copy(update={"executed_features": frozenset()})
    for lanes in (1, 3, 4, 8, 16):
        a, b, expected = words_of(operation, lanes)
        kernel = kernel_of(operation, lanes, tirx.const(7, operation.total))
        mod, report = apply_schedules(tvm.IRModule({"kernel": kernel}), machine)
        assert not report.failures
        library = tvm.compile(mod, target=target.tvm_target())
        found = tvm.runtime.tensor(np.zeros(lanes, operation.total))
        library["kernel"](tvm.runtime.tensor(a), tvm.runtime.tensor(b), found)
        np.testing.assert_allclose(found.numpy(), expected, rtol=2e-6, atol=1e-6 if operation is DOT_BF16 else 0)
