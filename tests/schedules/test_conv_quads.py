"""Convolutions of 8-bit integers in blocks of four channels: exact on this machine, and under an emulator on Arm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tvm import relax

import compiler
import targets
from compiler.passes.layout.values import pack_filter_groups
from schedules.conv.dot import conv_dot
from schedules.conv.workload import QuadsWorkload
from schedules.instructions.dot_products.table import vector_instructions
from targets.cpu.family import CpuTarget
from tests.compiler.device.disassembly import Loop, inner_loops
from tests.compiler.device.emulators import target_that_runs
from tests.schedules.blocked import reference_conv, unpack
from tests.schedules.conv.test_dot import operands, pack

FILTERS, SIZE, PAD, FILL = 24, (5, 13), ((1, 1), (1, 1)), 3
# Multiplications of an instruction on a register of four sums.
PRODUCTS = {r"(sdot|udot|usdot|sudot)\b": 16, r"(smmla|usmmla)\b": 32}


def build(target: Any, kind: str, *, matrix: bool, channels: int, stride: int, kernel: int) -> tuple[Any, Any]:
    """The module, and (the result, what it should be) on random numbers."""
    pad = PAD if kernel > 1 else ((0, 0), (0, 0))
    products = vector_instructions(target.machine, kind, "int8")  # none on AVX2, where plain code sums as unsigned
    signed = bool(products) and products[0].operation.a == "int8"
    work = QuadsWorkload(
        1, channels, 4, SIZE, (kernel, kernel), (stride, stride), (1, 1), pad, "int32", FILTERS, 1,
        8 if matrix else 4, operand=kind, fill=FILL, signed=signed, matrix=matrix,
    )  # fmt: skip
    x, w, x_meant, w_meant = operands(
        np.random.default_rng(0), kind, (1, channels, *SIZE), (FILTERS, channels, kernel, kernel)
    )
    stored, packed = pack(x, 4), pack_filter_groups(w, work.in_block, 4, work.group)
    data = relax.Var("data", relax.TensorType(stored.shape, kind))
    weight = relax.Var("weight", relax.TensorType(packed.shape, "int8"))
    builder = relax.BlockBuilder()
    with builder.function("main", [data, weight]):
        with builder.dataflow():
            result = builder.emit_output(builder.emit_te(lambda x, w: conv_dot(x, w, work), data, weight))
        builder.emit_func_output(relax.Tuple([result]))
    module = compiler.compile(builder.get(), target)
    (actual,) = module.run([stored, packed]).values()
    amounts = [(0, 0), (0, 0), *pad]
    shifted = np.pad(x_meant.astype(np.float64) + work.shift, amounts, constant_values=FILL + work.shift)
    expected = reference_conv(shifted, w_meant, work.strides, work.dilations, [(0, 0)] * 2, 1)
    return module, (unpack(actual, FILTERS), expected)


def hot(module: compiler.Module, target: CpuTarget, folder: Path, pattern: str) -> list[Loop]:
    return [loop for loop in inner_loops(module, target.family.toolchain, folder) if loop.count(pattern) >= 8]


@pytest.mark.parametrize("kind", ["uint8", "int8"])
@pytest.mark.parametrize("matrix", [False, True])
def test_the_meaning_on_any_machine(kind: str, matrix: bool) -> None:
    """Machines without the instruction run it by the rules that they have."""
    target = targets.get("x86-64-v3", cores=1)
    _, (actual, expected) = build(target, kind, matrix=matrix, channels=12, stride=2, kernel=3)
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize(
    ("name", "kind", "instruction"),
    [
        ("raspberry-pi-5", "uint8", "sdot"),
        ("raspberry-pi-5", "int8", "sdot"),
        ("graviton3", "uint8", "usmmla"),
        ("graviton3", "int8", "smmla"),
    ],
)
@pytest.mark.parametrize(("channels", "stride", "kernel"), [(20, 1, 3), (16, 2, 3), (24, 1, 1)])
def test_arm_multiplies_bytes_exactly(
    name: str, kind: str, instruction: str, channels: int, stride: int, kernel: int, tmp_path: Path
) -> None:
    target = target_that_runs(name)
    assert isinstance(target, CpuTarget)
    matrix = instruction.endswith("mmla")
    module, (actual, expected) = build(target, kind, matrix=matrix, channels=channels, stride=stride, kernel=kernel)
    np.testing.assert_array_equal(actual, expected)
    assert [each.rule for each in module.manifest.kernels] == ["conv-matrix" if matrix else "conv-dot"]
    loops = hot(module, target, tmp_path, rf"{instruction}\b")
    assert max(loop.share(rf"{instruction}\b") for loop in loops) > (0.55 if stride == 1 and kernel == 3 else 0.4)


def test_matrices_need_fewer_instructions_than_dot_products(tmp_path: Path) -> None:
    target = target_that_runs("graviton3")
    assert isinstance(target, CpuTarget)
    rates = {}
    for matrix in (False, True):
        module, _ = build(target, "uint8", matrix=matrix, channels=32, stride=1, kernel=3)
        loops = [loop for pattern in PRODUCTS for loop in hot(module, target, tmp_path, pattern)]
        rates[matrix] = max(sum(loop.share(each) * size for each, size in PRODUCTS.items()) for loop in loops)
    assert rates[True] > 1.6 * rates[False], rates  # multiplications an instruction: 19.9 against 10.0
