"""Kernels of plain loops are lowered as by all relevant TVM passes."""

from __future__ import annotations

from typing import Any

import schedules.ir.load_tvm  # noqa: F401  (first, so that TVM loads without torch)

# isort: split
import tvm
from tvm import te, tirx
from tvm_ffi import structural_equal, structural_walk

import compiler.codegen.kernel_lowering  # noqa: F401  (registers the pipeline)
from compiler.codegen.kernel_lowering import is_plain, with_plain_kernels
from schedules.ir.expression import buffers_loaded
from schedules.ir.inline import IF_THEN_ELSE, call_name
from schedules.machine import Machine
from schedules.selection.apply import apply_schedules

_TARGET = tvm.target.Target({"kind": "llvm"})


def _kernels() -> dict[str, Any]:
    """A matmul with dynamic rows and a sum, both unscheduled."""
    rows = tirx.Var("rows", "int64")
    x, w = te.placeholder((rows, 64), name="x"), te.placeholder((64, 32), name="w")
    k = te.reduce_axis((0, 64), name="k")
    product = te.compute((rows, 32), lambda i, j: te.sum(x[i, k] * w[k, j], axis=k), name="product")
    y = te.placeholder((17, 5), name="y")
    total = te.compute((17, 5), lambda i, j: y[i, j] + y[i, 0], name="total")
    return {"matmul": te.create_prim_func([x, w, product]), "add": te.create_prim_func([y, total])}


def _bound(functions: dict[str, Any]) -> tvm.IRModule:
    named = {name: each.with_attr("global_symbol", name) for name, each in functions.items()}
    return tirx.transform.BindTarget(_TARGET.with_host(_TARGET))(tvm.IRModule(named))


def _lowered(mod: tvm.IRModule, *, plain: bool) -> dict[str, Any]:
    lower, _, _ = tirx.get_tir_pipeline("s_tir")
    with _TARGET, tvm.transform.PassContext(config={"tirx.disable_cse_tir": True}):
        result = (with_plain_kernels(lower) if plain else lower)(tirx.transform.ConvertSSA()(mod))
    return {str(var.name_hint): function for var, function in result.functions_items()}


def test_fewer_passes_leave_the_same_code() -> None:
    machine = Machine()
    scheduled, _ = apply_schedules(tvm.IRModule(_kernels()), machine)
    mod = _bound({str(var.name_hint): each for var, each in scheduled.functions_items()})
    assert all(is_plain(each) for _, each in mod.functions_items())
    fewer, whole = _lowered(mod, plain=True), _lowered(mod, plain=False)
    assert fewer.keys() == whole.keys()
    assert all(structural_equal(fewer[name], whole[name], map_free_vars=True) for name in whole)


def test_blocks_go_through_all_passes() -> None:
    mod = _bound(_kernels())
    assert not any(is_plain(each) for _, each in mod.functions_items())
    assert _lowered(mod, plain=True).keys() == {"matmul", "add"}


def test_kernels_for_a_gpu_go_through_all_passes() -> None:
    kernel = tirx.PrimFunc([], tirx.Evaluate(tirx.IntImm("int32", 0)))
    assert is_plain(kernel.with_attr("target", _TARGET))
    assert not is_plain(kernel.with_attr("target", tvm.target.Target({"kind": "opencl"})))


def test_vectors_under_a_condition_are_loaded_by_a_branch() -> None:
    """The condition implies the limits of indices, so TVM's simplifier drops them: an unconditional load of the first
    or last row would read outside of `x`."""
    rows = tirx.Var("rows", "int64")
    x = te.placeholder((rows, 2, 32), name="x")

    def other(i: Any, half: Any, d: Any) -> Any:
        above, below = tirx.min(half + 1, 1), tirx.max(half - 1, 0)
        return tirx.Select(half < 1, -x[i, above, d], x[i, below, d])

    kernel = te.create_prim_func([x, te.compute((rows, 2, 32), other, name="swapped")])
    scheduled, _ = apply_schedules(tvm.IRModule({"swap": kernel}), Machine(cores=2))
    lowered = _lowered(_bound({str(var.name_hint): each for var, each in scheduled.functions_items()}), plain=True)
    selects: list[Any] = []
    branches: list[Any] = []
    for each in lowered.values():
        structural_walk(each.body, [(tirx.Select, selects.append), (tvm.ir.Call, branches.append)])
    assert not any(buffers_loaded(side) for each in selects for side in (each.true_value, each.false_value))
    assert any(call_name(each) == IF_THEN_ELSE and buffers_loaded(each) for each in branches)
