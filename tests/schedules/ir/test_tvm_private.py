"""Each part of TVM that is used though it is not public still does what we use it for."""

from __future__ import annotations

import random

import numpy as np
import pytest

from schedules.ir import tvm_private
from schedules.ir.tir import structural_equal, tvm

# isort: split
from tvm import relax, te, topi
from tvm.relax.transform import LegalizeOps

FLOATS = relax.TensorType((2, 3, 4), "float32")
CHANNELS = relax.TensorType((3,), "float32")


def _run(
    call: relax.Call, parameters: list[relax.Var], legalization: tvm_private.Legalization, *arrays: np.ndarray
) -> np.ndarray:
    builder = relax.BlockBuilder()
    with builder.function("main", parameters):
        with builder.dataflow():
            result = builder.emit_output(call)
        builder.emit_func_output(result)
    lowered = LegalizeOps({call.op.name: legalization})(builder.get())
    machine = relax.VirtualMachine(relax.build(lowered, tvm.target.Target("llvm")), tvm.cpu())
    outcome: np.ndarray = machine["main"](*(tvm.runtime.tensor(each) for each in arrays)).numpy()
    return outcome


def _random(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("kind", ["layer_norm", "instance_norm", "group_norm"])
def test_norms(kind: str) -> None:
    x, scale, bias = relax.Var("x", FLOATS), relax.Var("scale", CHANNELS), relax.Var("bias", CHANNELS)
    data, factors, offsets = _random(2, 3, 4), _random(3), _random(3) + 1
    axes: tuple[int, ...]
    if kind == "layer_norm":
        moved = relax.TensorType((2, 4, 3), "float32")
        x, data = relax.Var("x", moved), data.transpose(0, 2, 1).copy()
        call, axes = relax.op.nn.layer_norm(x, scale, bias, axes=[-1]), (2,)
        legalization, shape = tvm_private.legalize_layer_norm, (1, 1, 3)
    elif kind == "instance_norm":
        call, axes = relax.op.nn.instance_norm(x, scale, bias, channel_axis=1, axes=[2]), (2,)
        legalization, shape = tvm_private.legalize_instance_norm, (1, 3, 1)
    else:
        call, axes = relax.op.nn.group_norm(x, scale, bias, num_groups=1, channel_axis=1, axes=[2]), (1, 2)
        legalization, shape = tvm_private.legalize_group_norm, (1, 3, 1)
    wide = data.astype(np.float64)
    normalized = (wide - wide.mean(axes, keepdims=True)) / np.sqrt(wide.var(axes, keepdims=True) + 1e-5)
    expected = normalized * factors.reshape(shape) + offsets.reshape(shape)
    got = _run(call, [x, scale, bias], legalization, data, factors, offsets)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_binary_and_quantize() -> None:
    x, y = relax.Var("x", FLOATS), relax.Var("y", FLOATS)
    data = _random(2, 3, 4)
    got = _run(relax.op.divide(x, y), [x, y], tvm_private.legalize_binary(topi.divide), data, data + 3)
    np.testing.assert_allclose(got, data / (data + 3), rtol=1e-6)
    quantize = relax.op.quantize(x, relax.const(0.5, "float32"), relax.const(3, "int8"), -1, "int8")
    got = _run(quantize, [x], tvm_private.legalize_quantize, np.full((2, 3, 4), 1.2, np.float32))
    assert got.dtype == np.int8
    assert (got == 5).all()


def test_a_variable_gets_its_type() -> None:
    variable = tvm.ir.GlobalVar("kernel")
    tvm_private.set_type(variable, FLOATS)
    assert structural_equal(variable.ty, FLOATS)


def test_operators_are_declared_once() -> None:
    name = f"tirx.tensorwright_test_{random.getrandbits(32)}"
    assert name not in {str(each) for each in tvm.ir.Op.list_op_names()}
    tvm_private.declare_operator(name, "Of a test.")
    assert name in {str(each) for each in tvm.ir.Op.list_op_names()}


def test_bytecode_is_generated_and_linked_apart() -> None:
    x = relax.Var("x", FLOATS)
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        builder.emit_func_output(x)
    made = relax.ExecBuilder()
    lowered = relax.transform.AttachGlobalSymbol()(relax.transform.VMShapeLower()(builder.get()))
    tvm_private.generate_bytecode(made, lowered)
    machine = relax.VirtualMachine(tvm_private.link_bytecode(made, tvm.target.Target("llvm")), tvm.cpu())
    data = _random(2, 3, 4)
    np.testing.assert_array_equal(machine["main"](tvm.runtime.tensor(data)).numpy(), data)


def test_llvm_describes_processors() -> None:
    assert tvm_private.llvm_host_model()
    assert tvm_private.llvm_host_features()
    haswell = tvm_private.llvm_features({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "haswell"})
    assert {"avx2", "fma"} <= haswell
    assert "avx512f" not in haswell


def test_a_context_of_tuning_without_its_constructor() -> None:
    from tvm.s_tir import meta_schedule
    from tvm.s_tir.meta_schedule.logging import get_logger, get_logging_func

    x = te.placeholder((8,), "float32")
    function = te.create_prim_func([x, te.compute((8,), lambda i: x[i] + 1)])
    space = meta_schedule.space_generator.PostOrderApply(sch_rules=[], postprocs=[], mutator_probs={})
    log = get_logging_func(get_logger(__name__))
    strategy = meta_schedule.search_strategy.ReplayTrace()
    target = tvm.target.Target({"kind": "llvm", "num-cores": 1})
    context = tvm_private.tune_context(tvm.IRModule({"main": function}), target, space, strategy, (7, log))
    assert context.task_name == "main"
