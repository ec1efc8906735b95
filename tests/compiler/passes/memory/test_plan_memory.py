# mypy: disable-error-code="valid-type, no-untyped-def"
# ruff: noqa: N805, RET504
"""plan-memory and mark-in-place: no live value is overwritten, storage is shared, and the report is consistent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx.parser
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax
from tvm.ir import IRModule
from tvm.script import ir as I
from tvm.script import relax as R

from compiler.frontends.onnx import import_onnx
from compiler.passes.context import PipelineContext
from compiler.passes.memory.liveness import ALIGNMENT, Lifetime, assign, peak_of_live_bytes
from compiler.passes.pipeline import run_pipeline
from compiler.passes.rewriting.matching import as_constant
from compiler.passes.verify import flatten
from compiler.support.formula import evaluate
from schedules.machine import Machine
from tests.compiler.passes.building import Build, run_module
from tests.unoptimized import unoptimized_machine

op = relax.op


def planned(mod: IRModule, *inputs: Any, bounds: dict[str, int] | None = None) -> tuple[list[Any], dict[str, Any]]:
    """Outputs and the report of `main`, run through the pipeline with kernels left unfused."""
    context = PipelineContext(shape_bounds=bounds or {})
    leave_out: dict[str, Any] = {f"instead-of:{name}": None for name in ("canonicalize", "group-operators")}
    result = run_pipeline(mod, context, passes={**leave_out, "before:fuse": "normalize"})
    arguments = map(tvm.runtime.tensor, [*inputs, *result.parameters.values()])
    outputs = flatten(unoptimized_machine(result.mod, relax_pipeline=None)["main"](*arguments))
    return outputs, result.report.memory["main"]


def chain(length: int) -> IRModule:
    build = Build()
    value = build.input("x", (64, 64))
    for _ in range(length):
        value = build.emit(op.matmul(value, build.constant((64, 64))))
    return build.module(value)


def test_a_chain_needs_two_storages_and_its_result() -> None:
    x = np.random.default_rng(0).standard_normal((64, 64)).astype("float32") / 8
    outputs, report = planned(chain(8), x)
    one = 64 * 64 * 4
    assert report == {
        "peak": 3 * one,
        "without_reuse": 8 * one,
        "lower_bound": 2 * one,
        "in_place": 0,
        "unplanned": 0,
    }
    np.testing.assert_allclose(outputs[0], run_module(chain(8), x)[0], rtol=1e-4, atol=1e-2)


def test_elementwise_kernels_write_over_their_operand() -> None:
    build = Build()
    x = build.input("x", (8, 8))
    value = build.emit(op.matmul(x, build.constant((8, 8))))
    for function in (op.exp, op.sin, op.nn.relu):
        value = build.emit(function(value))
    mod = build.module(build.emit(op.matmul(value, build.constant((8, 8)))))
    data = np.random.default_rng(0).standard_normal((8, 8)).astype("float32") / 8
    outputs, report = planned(mod, data)
    assert report["in_place"] == 3
    assert report["peak"] == 2 * 8 * 8 * 4
    np.testing.assert_allclose(outputs[0], run_module(mod, data)[0], rtol=1e-5)


def test_an_update_of_a_tensor_that_ends_there_is_in_place() -> None:
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
    agraph (float[8,8] x, float[2,8] rows, int64[2,1] places) => (float[8,8] y) {
      kept = MatMul (x, x)
      first = ScatterND (kept, places, rows)
      second = ScatterND <reduction="add"> (first, places, rows)
      y = MatMul (second, kept)
    }""")
    generator = np.random.default_rng(0)
    x, rows = (generator.standard_normal(shape).astype("float32") for shape in ((8, 8), (2, 8)))
    outputs, report = planned(import_onnx(model).mod, x, rows, np.array([[6], [1]]))
    assert report["in_place"] == 1  # the second; the first updates what is read later
    expected = x @ x
    expected[[6, 1]] = rows * 2
    np.testing.assert_allclose(outputs[0], expected @ (x @ x), rtol=1e-4, atol=1e-4)


def test_an_operand_that_is_also_read_elsewhere_is_not_written_over() -> None:
    build = Build()
    x = build.input("x", (8, 8))
    value = build.emit(op.matmul(x, build.constant((8, 8))))
    turned = build.emit(op.add(value, build.emit(op.permute_dims(value))))
    later = build.emit(op.exp(turned))
    mod = build.module(build.emit(op.matmul(build.emit(op.add(later, turned)), turned)))
    data = np.random.default_rng(0).standard_normal((8, 8)).astype("float32") / 8
    outputs, _ = planned(mod, data)
    np.testing.assert_allclose(outputs[0], run_module(mod, data)[0], rtol=1e-4)


def test_a_view_keeps_its_memory_and_results_own_theirs() -> None:
    build = Build()
    x = build.input("x", (8, 8))
    first = build.emit(op.sin(x))
    view = build.emit(op.reshape(first, (64,)))
    other = build.emit(op.matmul(x, build.constant((8, 8))))
    more = build.emit(op.matmul(other, build.constant((8, 8))))
    mod = build.module(build.emit(op.multiply(view, build.constant((64,)))), more, view)
    data = np.random.default_rng(0).standard_normal((8, 8)).astype("float32")
    outputs, _ = planned(mod, data)
    for got, expected in zip(outputs, run_module(mod, data), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_branches_and_private_functions() -> None:
    w = as_constant(np.eye(4, dtype="float32") * 2)

    @I.ir_module
    class Before:
        @R.function(private=True)
        def same(x: R.Tensor((4, 4), "float32")) -> R.Tensor((4, 4), "float32"):
            return x

        @R.function
        def main(x: R.Tensor((4, 4), "float32"), c: R.Tensor((), "bool")) -> R.Tensor((4, 4), "float32"):
            cls = Before
            a = R.matmul(x, w)
            kept = cls.same(a)
            if c:
                b = R.matmul(a, w)
                d = R.exp(b)
                r = d
            else:
                e = R.sin(a)
                r = e
            f = R.matmul(r, w)
            g = R.add(f, kept)
            return g

    data = np.random.default_rng(0).standard_normal((4, 4)).astype("float32") / 8
    for flag in (True, False):
        arguments = data, np.array(flag)
        outputs, report = planned(Before, *arguments)
        doubled = data * 2
        taken = np.exp(doubled * 2) if flag else np.sin(doubled)  # TVM's own plan crashes on branches
        np.testing.assert_allclose(outputs[0], taken * 2 + doubled, rtol=1e-5)
        assert report["peak"] < report["without_reuse"]


def test_branches_with_symbols_keep_to_their_own_storage() -> None:
    w = as_constant(np.eye(4, dtype="float32") * 2)

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor(("n", 4), "float32"), c: R.Tensor((), "bool")) -> R.Tensor(("n", 4), "float32"):
            a = R.matmul(x, w)
            if c:
                b = R.matmul(a, w)
                d = R.exp(b)
                r = d
            else:
                e = R.sin(a)
                r = e
            f = R.matmul(r, w)
            return f

    data = np.random.default_rng(0).standard_normal((3, 4)).astype("float32") / 8
    for flag in (True, False):
        for bounds in ({}, {"n": 8}):
            outputs, _ = planned(Before, data, np.array(flag), bounds=bounds)
            taken = np.exp(data * 4) if flag else np.sin(data * 2)
            np.testing.assert_allclose(outputs[0], taken * 2, rtol=1e-5)


def test_symbols_are_planned_with_bounds_and_by_equal_sizes_without() -> None:
    """Without bounds a chain of four needs two storages, and its result a separate one."""
    build = Build()
    value = build.input("x", ("n", 8))
    for _ in range(4):
        value = build.emit(op.matmul(value, build.constant((8, 8))))
    mod = build.module(value)
    data = np.random.default_rng(0).standard_normal((5, 8)).astype("float32")
    expected = run_module(mod, data)[0]
    outputs, report = planned(mod, data)
    assert report["unplanned"] == 4
    result = run_pipeline(mod, until="plan-memory")
    text = result.mod["main"].script()
    assert text.count("alloc_storage") == 3
    assert evaluate(result.report.dynamic_memory["main"], {"n": 5}) == 3 * 5 * 8 * 4
    np.testing.assert_allclose(outputs[0], expected, rtol=1e-4, atol=1e-4)
    outputs, report = planned(mod, data, bounds={"n": 16})
    assert report["unplanned"] == 0
    assert report["peak"] == 3 * 16 * 8 * 4
    np.testing.assert_allclose(outputs[0], expected, rtol=1e-4, atol=1e-4)


LIFETIMES = st.lists(
    st.tuples(st.integers(1, 5000), st.integers(0, 30), st.integers(0, 6)).map(
        lambda each: Lifetime(each[0], each[1], each[1] + each[2])
    ),
    max_size=25,
)


@settings(max_examples=200, deadline=None)
@given(LIFETIMES)
def test_no_two_tensors_that_are_alive_together_share(lifetimes: list[Lifetime]) -> None:
    chosen, sizes = assign(lifetimes, {})
    for i, one in enumerate(lifetimes):
        assert one.size <= sizes[chosen[i]]
        for j, other in enumerate(lifetimes[:i]):
            overlap = one.start <= other.end and other.start <= one.end
            assert not (overlap and chosen[i] == chosen[j])
    total = sum(-(-each.size // ALIGNMENT) * ALIGNMENT for each in lifetimes)
    assert peak_of_live_bytes(lifetimes) <= sum(sizes) <= total


@settings(max_examples=7, deadline=None)
@given(st.data())
def test_random_graphs_keep_their_numbers(data: st.DataObject) -> None:
    build = Build()
    values = [build.input("x", (4, 4))]
    for _ in range(data.draw(st.integers(3, 10))):
        left, right = (data.draw(st.sampled_from(values)) for _ in range(2))
        choice = data.draw(st.sampled_from(["add", "matmul", "sin", "transpose", "reshape"]))
        calls: dict[str, Callable[[Any, Any], Any]] = {
            "add": lambda a, b: op.add(a, b),
            "matmul": lambda a, b: op.matmul(a, b),
            "sin": lambda a, _: op.sin(a),
            "transpose": lambda a, _: op.permute_dims(a),
            "reshape": lambda a, _: op.reshape(build.emit(op.tanh(build.emit(op.reshape(a, (16,))))), (4, 4)),
        }
        values.append(build.emit(op.tanh(build.emit(calls[choice](left, right)))))
    mod = build.module(*{data.draw(st.sampled_from(values[1:])): None, values[-1]: None})
    x = np.random.default_rng(0).standard_normal((4, 4)).astype("float32")
    outputs, report = planned(mod, x)
    assert report["peak"] <= report["without_reuse"] + ALIGNMENT * 40
    for got, expected in zip(outputs, run_module(mod, x), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def views_of_inputs() -> IRModule:
    """Results that are reshapes of an input, of an inner tensor that is read again, and of another result."""
    build = Build()
    x = build.input("x", (8, 8))
    flat = build.emit(op.reshape(x, (64,)))
    inner = build.emit(op.matmul(x, build.constant((8, 8))))
    view = build.emit(op.reshape(inner, (4, 16)))
    product = build.emit(op.matmul(view, build.constant((16, 8))))
    square = build.emit(op.reshape(build.emit(op.matmul(product, build.constant((8, 16)))), (8, 8)))
    last = build.emit(op.add(inner, square))
    return build.module(flat, view, last, build.emit(op.reshape(last, (64,))))


def test_reshapes_between_scheduled_kernels_copy_nothing() -> None:
    mod = views_of_inputs()
    result = run_pipeline(mod, PipelineContext(machine=Machine(vector_bits=256)))
    text = result.mod.script()
    assert "vm.builtin.reshape" in text
    data = np.random.default_rng(0).standard_normal((8, 8)).astype("float32")
    given = tvm.runtime.tensor(data)
    arguments = map(tvm.runtime.tensor, result.parameters.values())
    outputs = flatten(unoptimized_machine(result.mod, relax_pipeline=None)["main"](given, *arguments))
    given.copyfrom(np.zeros((8, 8), "float32"))  # a result owns its memory
    for got, expected in zip(outputs, run_module(mod, data), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
