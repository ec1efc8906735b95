"""Products of data that were rounded by the kernel before, alone and as a gated MLP, against float64."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from tvm import relax

from compiler.passes.rewriting.block_weights import BlockWeight, block_product, gated_product, gates
from schedules.codegen.nest import CHUNKED
from schedules.ir.tir import structural_walk, tirx, tvm
from tests.schedules.harness import Array, normal, runnable, scheduled, virtual_machine


def rounded(array: Array) -> Array:
    return array.astype(ml_dtypes.bfloat16).astype("float64")


def run(mod: Any, target: str, data: Array) -> Array:
    machine = virtual_machine(mod, target)
    return np.asarray(machine["main"](tvm.runtime.tensor(data)).numpy())


def weight(columns: int, depth: int, seed: int) -> tuple[BlockWeight, Array]:
    values = (normal((columns, depth), seed) / np.sqrt(depth)).astype("float32")
    return BlockWeight.of_floats(values, "bfloat16"), rounded(values)


TILES = "sapphire-rapids-simulated"


@pytest.mark.parametrize("target", [TILES, *runnable()])
def test_the_kernel_before_rounds(target: str) -> None:
    stored, exact = weight(40, 64, 1)

    def make(builder: Any, data: Any) -> Any:
        gain = relax.const(np.ones(64, "float32"))
        normed = builder.emit(relax.op.nn.rms_norm(data, gain, [-1], 1e-5))
        return block_product(builder, normed, stored, "bfloat16")

    mod, report = scheduled(make, [((tirx.Var("n", "int64"), 64), "float32")], target)
    assert report.by_rule().get("matmul-rounded-bf16"), report
    assert sum(map(len, report.by_rule().values())) == 2  # the norm, which rounds, and the product
    assert ("tensorwright_tiles_" in str(mod)) == (target == TILES)
    for rows in (1, 5, 19, 32, 150):
        data = normal((rows, 64))
        normed = data / np.sqrt((data.astype("float64") ** 2).mean(-1, keepdims=True) + 1e-5)
        # An element beside the middle of two bfloat16 may be rounded either way.
        np.testing.assert_allclose(run(mod, target, data), rounded(normed) @ exact.T, rtol=1e-3, atol=4e-3)


@pytest.mark.parametrize(
    ("target", "activation"),
    [
        *((target, "silu") for target in [TILES, *runnable()]),
        *((runnable()[-1], each) for each in ("gelu", "gelu_tanh", "relu")),
    ],
)
def test_a_gated_mlp(target: str, activation: str) -> None:
    depth = 96 if target == TILES else 34
    (gate, exact_gate), (up, exact_up) = weight(64, depth, 1), weight(64, depth, 2)
    assert gates(gate, up, activation)

    def make(builder: Any, data: Any) -> Any:
        return gated_product(builder, data, (gate, up), activation)

    mod, report = scheduled(make, [((2, tirx.Var("n", "int64"), depth), "float32")], target)
    assert report.by_rule().get("matmul-gated-bf16"), report
    for rows in (1, 9, 40):
        data = normal((2, rows, depth))
        products = [rounded(data) @ each.T for each in (exact_gate, exact_up)]
        expected = act(activation, products[0]) * products[1]
        np.testing.assert_allclose(run(mod, target, data), expected, rtol=1e-5, atol=1e-5)


def act(name: str, x: Array) -> Array:
    import torch

    functions: dict[str, Any] = {
        "silu": torch.nn.functional.silu,
        "gelu": torch.nn.functional.gelu,
        "gelu_tanh": lambda each: torch.nn.functional.gelu(each, approximate="tanh"),
        "relu": torch.relu,
    }
    return np.asarray(functions[name](torch.from_numpy(x)).numpy())


def test_what_is_not_gated() -> None:
    (bf16, _), (other, _) = weight(64, 34, 1), weight(48, 34, 2)
    assert not gates(bf16, bf16, "relu2")
    assert not gates(other, other, "silu")  # its last panel is not full
    assert not gates(bf16, other, "silu")
    narrow = BlockWeight.of_floats(normal((64, 34)).astype("float32"), "float16")
    assert not gates(narrow, narrow, "silu")


@pytest.mark.parametrize(("columns", "always"), [(512, True), (32, False)])
@pytest.mark.parametrize("numbers", ["bfloat16", "float32"])
def test_threads_share_weights_that_a_single_row_waits_for(numbers: str, columns: int, always: bool) -> None:
    stored = BlockWeight.of_floats(normal((columns, 256), 3).astype("float32"), numbers)

    def make(builder: Any, data: Any) -> Any:
        return block_product(builder, data, stored, numbers)

    mod, _ = scheduled(make, [((tirx.Var("n", "int64"), 256), "float32")], "graviton3")
    conditions = [CHUNKED in loop.annotations for loop in parallel_loops(mod)]
    assert (not all(conditions)) == always


def parallel_loops(mod: Any) -> list[Any]:
    loops: list[Any] = []
    for function in mod.functions.values():
        if isinstance(function, tirx.PrimFunc):
            structural_walk(function.body, (tirx.For, loops.append))
    return [loop for loop in loops if loop.kind == tirx.ForKind.PARALLEL]
