"""Targets with scalable vectors: kernels keep the vectors that their rules gave them, and compute the right numbers."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.reference
import pytest
from onnx import helper, numpy_helper

import compiler
import schedules.ir.load_tvm  # noqa: F401  (first, so that TVM loads without torch)

# isort: split
import tvm
from tvm import te

import targets
from compiler.codegen.kernel_lowering import with_fixed_vectors
from tests.compiler.device.emulators import target_that_runs

RISCV = "riscv64-linux"
FLOAT = onnx.TensorProto.FLOAT


def test_the_engine_is_not_told_of_scalable_vectors() -> None:
    target = targets.get(RISCV).tvm_target()
    x = te.placeholder((64,), name="x")
    function = te.create_prim_func([x, te.compute((64,), lambda i: x[i] + x[i], name="y")])
    seen = []

    def lower(mod: tvm.IRModule) -> tvm.IRModule:
        seen.append(mod["main"].attrs["target"])
        return mod

    mod = tvm.IRModule({"main": function.with_attr("target", target.with_host(target))})
    after = with_fixed_vectors(lower)(mod)["main"].attrs["target"]
    assert "+v" in target.attrs["mattr"]
    assert "+v" not in seen[0].attrs["mattr"]
    assert "+v" not in seen[0].host.attrs["mattr"]
    assert set(after.attrs["mattr"]) == set(target.attrs["mattr"])
    assert set(after.host.attrs["mattr"]) == set(target.attrs["mattr"])


@pytest.mark.parametrize("function", ["Sigmoid", "Gelu", "Tanh", "Softmax", "Erf"])
def test_products_with_what_follows_them_compute_the_right_numbers(function: str) -> None:
    target = target_that_runs(RISCV)
    generator = np.random.default_rng(0)
    weight, bias = generator.standard_normal((96, 360)).astype("float32") / 10, generator.random(360).astype("float32")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("Add", ["product", "b"], ["sum"]),
        helper.make_node(function, ["sum"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, FLOAT, [1, size]) for name, size in (("x", 96), ("y", 360))]
    constants = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")]
    model = helper.make_model(
        helper.make_graph(nodes, "head", values[:1], values[1:], constants), opset_imports=[helper.make_opsetid("", 20)]
    )
    x = generator.standard_normal((1, 96)).astype("float32")
    (expected,) = onnx.reference.ReferenceEvaluator(model).run(None, {"x": x})
    actual = compiler.compile(model, target=target).run({"x": x})["y"]
    np.testing.assert_allclose(actual, np.asarray(expected), rtol=2e-6, atol=2e-6)
