"""Products of 8-bit integers on Arm, by matrix instructions and by dot products of signed numbers: exact."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tvm import relax

import compiler
import targets
from schedules.instructions.dot_products.operation import DOT_S8S8
from schedules.instructions.dot_products.table import matrix_instruction
from schedules.ir.tir import tirx
from schedules.matmul.packed_operand import pack_words
from schedules.matmul.words import DEPTH, matmul_matrix, matmul_words
from targets.cpu.family import CpuTarget
from tests.compiler.device.disassembly import inner_loops
from tests.compiler.device.emulators import target_that_runs
from tests.schedules.blocked import Array
from tests.schedules.matmul.test_int8 import integers

_WIDTH = 8  # columns of a panel


def build(target: Any, shape: tuple[Any, ...], kind: str, weight: Array, *, matrix: bool) -> compiler.Module:
    """data @ weight + 5; without `matrix` by dot products of signed numbers."""
    kernel = matmul_matrix if matrix else partial(matmul_words, operation=DOT_S8S8)
    packed = pack_words(weight, _WIDTH, DEPTH if matrix else DOT_S8S8.group)
    data = relax.Var("data", relax.TensorType(shape, kind))
    builder = relax.BlockBuilder()
    with builder.function("main", [data]):
        with builder.dataflow():
            call = builder.call_te(
                kernel,
                data,
                relax.const(packed),
                weight.shape[1],
                primfunc_name_hint="matmul",
                primfunc_attrs={"op_pattern": 4},
            )
            result = builder.emit_output(relax.op.add(builder.emit(call), relax.const(np.int32(5))))
        builder.emit_func_output(relax.Tuple([result]))
    return compiler.compile(builder.get(), target)


def check(module: compiler.Module, data: Array, weight: Array, shift: int = 0) -> None:
    (actual,) = module.run([data]).values()
    np.testing.assert_array_equal(actual, (data.astype(np.int64) + shift) @ weight.astype(np.int64) + 5)


@pytest.mark.parametrize("kind", ["uint8", "int8"])
@pytest.mark.parametrize("matrix", [False, True])
def test_the_meaning_on_any_machine(kind: str, matrix: bool) -> None:
    """Machines without the instruction run it by the rules that they have."""
    target = targets.get("x86-64-v3", cores=1)
    data, weight = integers((2, 3, 20), kind, 0), integers((20, 12), "int8", 1)
    shift = 0 if matrix else DOT_S8S8.shift(kind)
    check(build(target, data.shape, kind, weight, matrix=matrix), data, weight, shift)


@pytest.mark.parametrize(("name", "kind"), [("graviton3", "uint8"), ("graviton3", "int8"), ("raspberry-pi-5", "uint8")])
@pytest.mark.parametrize(
    ("leading", "depth", "columns"), [((37,), 48, 64), ((3, 5), 40, 30), ((1,), 33, 20), ((2, 1, 9), 20, 13)]
)
def test_any_size_on_arm(name: str, kind: str, leading: tuple[int, ...], depth: int, columns: int) -> None:
    target = target_that_runs(name, cores=2)
    matrix = matrix_instruction(target.machine, kind, "int8") is not None
    data, weight = integers((*leading, depth), kind, 0), integers((depth, columns), "int8", 1)
    module = build(target, data.shape, kind, weight, matrix=matrix)
    assert [each.rule for each in module.manifest.kernels] == ["matmul-matrix" if matrix else "matmul-int8-signed"]
    check(module, data, weight, 0 if matrix else DOT_S8S8.shift(kind))


def test_symbolic_rows() -> None:
    target = target_that_runs("graviton3")
    weight = integers((48, 40), "int8", 1)
    module = build(target, (tirx.Var("n", "int64"), 3, 48), "int8", weight, matrix=True)
    assert [each.rule for each in module.manifest.kernels] == ["matmul-matrix"]
    for rows in (1, 5, 11):
        check(module, integers((rows, 3, 48), "int8", rows), weight)


def test_matrices_need_fewer_instructions_than_dot_products(tmp_path: Path) -> None:
    target = target_that_runs("graviton3")
    assert isinstance(target, CpuTarget)
    weight = integers((256, 64), "int8", 1)
    rates = {}
    for matrix, pattern, products in ((True, r"usmmla\b", 32), (False, r"sdot\b", 16)):
        module = build(target, (64, 256), "uint8", weight, matrix=matrix)
        loops = [loop for loop in inner_loops(module, target.family.toolchain, tmp_path) if loop.count(pattern) >= 8]
        rates[matrix] = max(loop.share(pattern) * products for loop in loops)
    assert rates[True] > 2 * rates[False], rates  # multiplications an instruction: 19.0 against 7.1


def test_compiled_nets_use_them() -> None:
    """A quantized net compiled for the processor uses the matrix instructions."""
    data = relax.Var("data", relax.TensorType((6, 32), "uint8"))
    image = relax.Var("image", relax.TensorType((1, 16, 6, 6), "uint8"))
    weight, filters = integers((32, 16), "int8", 1), integers((8, 16, 3, 3), "int8", 2)
    builder = relax.BlockBuilder()
    with builder.function("main", [data, image]):
        with builder.dataflow():
            product = builder.emit(relax.op.matmul(data, relax.const(weight), out_dtype="int32"))
            conv = builder.emit(relax.op.nn.conv2d(image, relax.const(filters), out_dtype="int32"))
            result = builder.emit_output(relax.Tuple([product, conv]))
        builder.emit_func_output(result)
    for name, rules in (
        ("graviton3", {"matmul-matrix", "conv-matrix"}),
        ("raspberry-pi-5", {"matmul-int8-signed", "conv-dot"}),
    ):
        module = compiler.compile(builder.get(), target_that_runs(name))
        assert {each.rule for each in module.manifest.kernels} >= rules
        x, y = integers((6, 32), "uint8", 3), integers((1, 16, 6, 6), "uint8", 4)
        first, second = module.run([x, y]).values()
        np.testing.assert_array_equal(first, x.astype(np.int64) @ weight.astype(np.int64))
        windows = np.lib.stride_tricks.sliding_window_view(y.astype(np.int64), (3, 3), axis=(2, 3))
        np.testing.assert_array_equal(second, np.einsum("nchwij,ocij->nohw", windows, filters.astype(np.int64)))
