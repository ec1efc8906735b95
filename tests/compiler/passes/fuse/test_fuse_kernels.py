"""Groups of operators, and the order of the size arguments of fused kernels."""

from __future__ import annotations

from typing import Any

import numpy as np

import schedules.ir.load_tvm  # noqa: F401  (first, so that TVM loads without torch)

# isort: split
import tvm
from tvm import relax, te, tirx

from compiler.passes.context import PipelineContext
from compiler.passes.fuse.fuse_kernels import order_of_use
from compiler.passes.registry import get_pass
from tests.unoptimized import unoptimized_machine


def _doubled(names: str) -> tuple[Any, list[Any]]:
    """A kernel over sizes that are twice those of `names`, which it takes last name first; and the sizes."""
    sizes = [tirx.Var(name, "int64") for name in names]
    x = te.placeholder([size * 2 for size in sizes], name="x")
    y = te.compute(x.shape, lambda *place: x(*place) + 1.0, name="y")
    return te.create_prim_func([x, *reversed(sizes), y]).without_attr("global_symbol"), sizes


def test_sizes_come_in_the_order_of_dimensions() -> None:
    kernel, sizes = _doubled("abc")
    assert [kernel.params[place].name for place in order_of_use(kernel)][1:-1] == [size.name for size in sizes]


def test_calls_give_the_sizes_in_the_kernels_order(monkeypatch: Any) -> None:
    """Kernel and call agree for any order that TVM produces, here a wrong one."""
    kernel, _ = _doubled("ab")
    h, w = tirx.Var("h", "int64"), tirx.Var("w", "int64")
    kind = relax.TensorType([h * 2, w * 2], "float32")
    x, like = relax.Var("x", kind), relax.Var("like", relax.TensorType([h, w], "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x, like]):
        with builder.dataflow():
            call = relax.call_tir(builder.add_func(kernel, "add"), [x, relax.prim_value(w), relax.prim_value(h)], kind)
            result = builder.emit_output(call)
        builder.emit_func_output(result)
    fused = builder.get()
    monkeypatch.setattr("tvm.relax.transform.FuseTIR", lambda: lambda _mod: fused)
    before = tvm.IRModule({var: each for var, each in fused.functions_items() if var.name_hint != "add"})
    ordered = get_pass("fuse-kernels")(before, PipelineContext())
    assert [str(each.name) for each in ordered["add"].params[1:-1]] == ["a", "b"]
    vm = unoptimized_machine(ordered)
    data = np.arange(4 * 6, dtype=np.float32).reshape(4, 6)
    got = vm["main"](tvm.runtime.tensor(data), tvm.runtime.tensor(np.zeros((2, 3), np.float32)))
    np.testing.assert_array_equal(got.numpy(), data + 1)


def test_values_with_a_match_cast_are_grouped_with_no_later_use() -> None:
    """TVM's FuseOps does not see that `total` depends on `positive` by way of the cast."""
    n, m = tirx.Var("n", "int64"), tirx.Var("m", "int64")
    x = relax.Var("x", relax.TensorType([n, 4], "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            positive = builder.emit(relax.op.nn.relu(x))
            named = builder.match_cast(positive, relax.TensorType([m, 4], "float32"))
            again = builder.match_cast(builder.emit(relax.op.exp(named)), relax.TensorType([n, 4], "float32"))
            result = builder.emit_output(relax.op.add(positive, again))
        builder.emit_func_output(result)
    mod = relax.transform.AnnotateTIROpPattern()(relax.transform.LegalizeOps()(builder.get()))
    fused = get_pass("fuse-kernels")(get_pass("group-operators")(mod, PipelineContext()), PipelineContext())
    vm = unoptimized_machine(fused)
    data = np.linspace(-2, 1, 12, dtype=np.float32).reshape(3, 4)
    positive = np.maximum(data, 0)
    np.testing.assert_allclose(vm["main"](tvm.runtime.tensor(data)).numpy(), positive + np.exp(positive), rtol=1e-6)
