"""The innermost loops of kernels for Arm contain the intended multiply-adds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import compiler
import schedules.ir.load_tvm  # noqa: F401  (first, so that TVM loads without torch)
from schedules.conv.dot import conv_dot
from schedules.conv.workload import DotWorkload
from targets.cpu.family import CpuTarget
from tests.compiler.device.disassembly import Loop, inner_loops
from tests.compiler.device.emulators import target_that_runs
from tests.schedules.blocked import reference_conv, unpack
from tests.schedules.conv.test_dot import pack, pack_weight

from tvm import relax  # isort: skip

_SPILL = r"(ldr|str|ldp|stp|ldur|stur) q.*\[sp"


def loops_of(module: compiler.Module, target: object, folder: Path) -> list[Loop]:
    assert isinstance(target, CpuTarget)
    return inner_loops(module, target.family.toolchain, folder)


def _net() -> tuple[torch.nn.Module, torch.Tensor]:
    """A dense and a pointwise convolution, and a matmul."""
    layers = [
        torch.nn.Conv2d(16, 32, 7, stride=2, padding=3),  # as stems have: no Winograd convolution
        torch.nn.ReLU(),
        torch.nn.Conv2d(32, 64, 1),
        torch.nn.Flatten(2),
        torch.nn.Linear(64, 64),
    ]
    return torch.nn.Sequential(*layers).eval(), torch.randn(1, 16, 16, 16)


def test_convolutions_and_products_are_multiply_adds_in_registers(tmp_path: Path) -> None:
    target = target_that_runs("raspberry-pi-4")
    net, example = _net()
    module = compiler.compile(net, target, example_inputs=(example,))
    assert {kernel.rule for kernel in module.manifest.kernels} >= {"conv-direct", "matmul"}
    hot = [loop for loop in loops_of(module, target, tmp_path) if loop.count("fmla") >= 16]
    tight = [loop for loop in hot if loop.share("fmla") > 0.5 and not loop.count(_SPILL)]
    assert len(tight) >= 3, [(loop.function, loop.share("fmla"), loop.count(_SPILL)) for loop in hot]
    # Lanes are multiplied as they are: a scalar in all lanes would cost as much as a multiply-add.
    assert not any(loop.count(r"ld1r|dup") for loop in tight)
    assert all(loop.share("fmla") > 0.7 for loop in tight), [(loop.function, loop.share("fmla")) for loop in tight]


@pytest.mark.parametrize("name", ["raspberry-pi-2", "raspberry-pi-4-32bit"])
def test_sixteen_registers_hold_the_sums_of_a_tile(name: str, tmp_path: Path) -> None:
    """If LLVM spills sums, loops are full of vector loads and stores."""
    target = target_that_runs(name)
    net, example = _net()
    module = compiler.compile(net, target, example_inputs=(example,))
    hot = [loop for loop in loops_of(module, target, tmp_path) if loop.count("vfma") >= 12]
    assert len(hot) >= 3
    together = Loop("all", tuple(operation for loop in hot for operation in loop.operations))
    assert together.share("vfma") > 0.35
    assert together.count("vst") < 0.15 * together.count("vfma")


def test_bfloat16_products_are_dot_products(tmp_path: Path) -> None:
    target = target_that_runs("graviton3")
    net, example = _net()
    module = compiler.compile(net, target, example_inputs=(example,), precision="bf16")
    hot = [loop for loop in loops_of(module, target, tmp_path) if loop.count("bfdot") >= 16]
    assert any(loop.share("bfdot") > 0.5 for loop in hot)
    (actual,) = module.run([example.numpy()]).values()
    with torch.no_grad():
        expected = net(example).numpy()
    # Operands have 8 bits; sums of up to 144 products of about 1.
    np.testing.assert_allclose(actual, expected, rtol=0.03, atol=0.03)


@pytest.mark.parametrize(
    ("name", "kind", "instruction"),
    [
        ("raspberry-pi-5", "uint8", "sdot"),
        ("raspberry-pi-5", "int8", "sdot"),
        ("graviton3", "uint8", "usdot"),
        ("raspberry-pi-4", "uint8", "mla"),
    ],
)
def test_integer_convolutions_are_exact_dot_products(name: str, kind: str, instruction: str, tmp_path: Path) -> None:
    target = target_that_runs(name)
    work = DotWorkload(1, 32, 4, (5, 9), (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)), "int32", 16, 1, 16, operand=kind)
    data = relax.Var("data", relax.TensorType((1, 2, 5, 9, 16), kind))
    weight = relax.Var("weight", relax.TensorType((4, 2, 3, 3, 4, 16), "int8"))
    builder = relax.BlockBuilder()
    with builder.function("main", [data, weight]):
        with builder.dataflow():
            result = builder.emit_output(builder.emit_te(lambda x, w: conv_dot(x, w, work), data, weight))
        builder.emit_func_output(relax.Tuple([result]))
    module = compiler.compile(builder.get(), target)
    assert [kernel.rule for kernel in module.manifest.kernels] == ["conv-dot"]
    assert any(loop.count(rf"{instruction}\b") >= 8 for loop in loops_of(module, target, tmp_path))
    rng = np.random.default_rng(0)
    limits = np.iinfo(kind)
    x = rng.choice([limits.min, limits.max, 0, 1, 77], (1, 32, 5, 9)).astype(kind)
    w = rng.choice([-128, 127, -1, 0, 55], (16, 32, 3, 3)).astype(np.int8)
    (actual,) = module.run([pack(x, 16), pack_weight(w, 16, 4, 4)]).values()
    shift = 128 if kind == "int8" else 0
    padded = np.pad(x.astype(np.float64) + shift, [(0, 0), (0, 0), (1, 1), (1, 1)], constant_values=shift)
    expected = reference_conv(padded, w, (1, 1), (1, 1), [(0, 0)] * 2, 1)
    np.testing.assert_array_equal(unpack(actual, 16), expected)


def test_x86_kernels_of_one_library_share_the_dot_product(tmp_path: Path) -> None:
    """Kernels with and without a dot product import the same text, of which the linker keeps only one copy."""
    net, example = _net()
    library = compiler.compile(net, "znver4", example_inputs=(example,), precision="bf16").artifact.library
    assert _evex_opcode(bytes(library), 0x52) >= 14


def _evex_opcode(code: bytes, opcode: int) -> int:
    """EVEX instructions of map 0F38 with prefix F3 and this opcode: VDPBF16PS is EVEX.F3.0F38.W0 52."""
    return sum(
        code[at] == 0x62 and code[at + 1] & 7 == 2 and code[at + 2] & 0x87 == 0x06 and code[at + 4] == opcode
        for at in range(len(code) - 5)
    )
