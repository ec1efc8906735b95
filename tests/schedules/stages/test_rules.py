"""Rules for kernels outside the operator families, and that their reports match the generated code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from tvm import relax, te
from tvm.script import tirx as T

import compiler
import targets
from schedules.ir.expression import nodes
from schedules.ir.stages import Kernel, kernels_of
from schedules.ir.tir import structural_walk, tirx, tvm
from schedules.selection.apply import apply_schedules
from schedules.selection.registry import rules
from schedules.stages.rules import GeneralRule, plan_kernel
from tests.schedules.harness import AVX512, MACHINES, Build, evaluate, lowered, normal, runnable, scheduled, target_of

op = relax.op
Shapes = list[tuple[tuple[Any, ...], str]]


def one(function: Callable[..., Any]) -> Build:
    return lambda builder, *inputs: builder.emit(function(*inputs))


def computed(compute: Callable[..., Any]) -> Build:
    return lambda builder, *inputs: builder.emit(builder.call_te(compute, *inputs))


def shuffled(x: Any) -> Any:
    return te.compute((40, 64), lambda i, j: x[i, (j * 7) % 64])


def repeated(x: Any) -> Any:
    return te.compute((9, x.shape[1] * 2), lambda i, j: x[i, j // 2])


def gathered(x: Any, at: Any) -> Any:
    return te.compute((40, 5), lambda i, j: x[i, at[j]])


N = tirx.Var("n", "int64")
F32 = "float32"
KERNELS: list[tuple[str, Build, Shapes]] = [
    ("rows", one(lambda x: op.nn.softmax(x, -1)), [((64, 77), F32)]),
    ("rows", one(lambda x, g, b: op.nn.layer_norm(x, g, b, axes=[-1])), [((64, 77), F32), ((77,), F32), ((77,), F32)]),
    ("rows", one(lambda x: op.nn.softmax(x, -1)), [((N, 77), F32)]),
    ("reduction", one(lambda x: op.sum(x, [0])), [((64, 77), F32)]),
    ("reduction", one(lambda x: op.max(x, [1])), [((64, 77), F32)]),
    ("transpose", one(lambda x: op.permute_dims(x, [1, 0])), [((64, 77), F32)]),
    ("transpose", one(lambda x: op.permute_dims(x, [1, 0])), [((N, 77), F32)]),
    ("transpose", computed(repeated), [((9, N), F32)]),
    ("transpose", one(lambda x: op.nn.relu(op.permute_dims(x, [1, 0]))), [((64, 77), F32)]),
    ("elementwise", one(op.nn.gelu), [((64, 77), F32)]),
    ("elementwise", one(op.add), [((64, 77), F32), ((77,), F32)]),
    ("elementwise", one(lambda x: op.astype(x, "int32")), [((64, 77), F32)]),
    ("elementwise", one(op.where), [((64, 77), "bool"), ((64, 77), F32), ((64, 77), F32)]),
    ("elementwise", one(op.exp), [((N, 77), F32)]),
    ("copy", one(lambda x, y: op.concat([x, y], 1)), [((9, 8, 77), F32), ((9, 3, 77), F32)]),
    ("copy", one(lambda x: op.nn.pad(x, [0, 0, 1, 1, 1, 1])), [((16, 77, 50), F32)]),
    ("copy", one(lambda x, at: op.take(x, at, 0)), [((64, 77), F32), ((9,), "int64")]),
    ("copy", one(lambda x: op.strided_slice(x, [0], [3], [60])), [((64, 77), F32)]),
    ("copy", computed(gathered), [((40, 64), F32), ((5,), "int64")]),
    ("fallback", computed(shuffled), [((40, 64), F32)]),
    ("fallback", one(lambda x: op.argmax(x, 1)), [((64, 77), F32)]),
    ("fallback", one(lambda x: op.strided_slice(x, [1], [0], [77], [5])), [((64, 77), F32)]),
]


def only_rule(build: Build, inputs: Shapes, target: str) -> str | None:
    """The rule of a module's largest kernel."""
    _, report = scheduled(build, inputs, target)
    return report.kernels[-1].rule


@pytest.mark.parametrize("target", MACHINES)
@pytest.mark.parametrize(("rule", "build", "inputs"), KERNELS)
def test_a_kernel_goes_to_the_rule_of_its_form(rule: str, build: Build, inputs: Shapes, target: str) -> None:
    assert only_rule(build, inputs, target) == rule


def test_pieces_of_single_elements_count_by_what_they_take() -> None:
    """The left and right rims of a padded image are single elements, stored with the vectors of their rows."""
    pad = one(lambda x: op.nn.pad(x, [0, 0, 1, 1]))
    assert only_rule(pad, [((77, 50), F32)], AVX512) == "copy"
    assert only_rule(pad, [((77, 5), F32)], AVX512) == "copy"
    columns = computed(lambda x: te.compute((77, 5), lambda i, j: tirx.if_then_else(j < 1, x[i], x[i + j * 77])))
    assert only_rule(columns, [((400,), F32)], AVX512) == "fallback"


def test_what_has_no_loop_is_not_of_the_fallback() -> None:
    assert only_rule(one(op.add), [((1,), F32), ((1,), F32)], AVX512) == "elementwise"


@T.prim_func(private=True, s_tir=True)
def half_opaque(a: T.Buffer((8,), "float32"), b: T.Buffer((8,), "float32"), c: T.Buffer((8,), "float32")) -> None:  # type: ignore[valid-type]
    for i in range(8):
        with T.sblock("copy"):
            at = T.axis.spatial(8, i)
            c[at] = a[at]
    for i in range(8):
        if a[i] > T.float32(0):
            b[i] = a[i]
        else:
            b[i] = T.float32(-1)


def test_statements_that_are_no_stage_leave_a_kernel_to_the_fallback() -> None:
    _, report = apply_schedules(tvm.IRModule({"half": half_opaque}), target_of(AVX512).machine)
    assert [kernel.rule for kernel in report.kernels] == ["fallback"]


def test_rules_of_forms_come_after_all_others_and_serve_a_kernel_alone() -> None:
    general = [rule for rule in rules() if isinstance(rule, GeneralRule)]
    assert {rule.name for rule in general} == {"rows", "reduction", "transpose", "elementwise", "copy", "fallback"}
    assert list(rules()[-len(general) :]) == general
    machine = target_of(AVX512).machine
    for _, build, inputs in KERNELS:
        for _, function in kernels_of(lowered(build, inputs, AVX512)):
            kernel = Kernel.of(function)
            assert sum(rule.match(kernel, machine) is not None for rule in general[:-1]) <= 1
            assert general[-1].match(kernel, machine) is not None


@pytest.mark.parametrize("perm", [(0, 2, 1), (2, 0, 1)], ids=["matrices", "last to front"])
def test_transposes_of_unknown_sizes(perm: tuple[int, ...]) -> None:
    node = helper.make_node("Transpose", ["x"], ["y"], perm=perm)
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", "n", "m"])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "transpose", [given], [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    module = compiler.compile(model, targets.get("host", cores=8), threads=2, records=False)
    for shape in ((1, 1, 1), (2, 8, 16), (1, 67, 7), (3, 17, 50), (1, 300, 129)):
        x = normal(shape)
        np.testing.assert_array_equal(module.run([x])["y"], x.transpose(perm))


def test_vectors_that_do_not_divide_rows_are_read_at_once() -> None:
    build = one(lambda x, y: op.concat([x, op.nn.relu(y)], 1))
    module, _ = scheduled(build, [((1, 6, 28, 28), F32), ((1, 2, 28, 28), F32)], AVX512)
    for function in module.functions.values():
        if isinstance(function, tirx.PrimFunc):
            assert not nodes(function.body, tirx.FloorDiv, tirx.FloorMod)


def test_a_plan_is_written_anew_each_time() -> None:
    """No variable is defined in two functions."""
    machine = target_of(AVX512).machine
    for _, build, inputs in KERNELS:
        for _, function in kernels_of(lowered(build, inputs, AVX512)):
            kernel = Kernel.of(function)
            rule = next(rule for rule in rules() if rule.match(kernel, machine) is not None)
            if isinstance(rule, GeneralRule):
                plan = plan_kernel(kernel, machine)
                first, second = (rule_code(rule, kernel) for _ in range(2))
                assert plan_kernel(kernel, machine) is plan
                assert not set(map(hash, first)) & set(map(hash, second))


def rule_code(rule: GeneralRule, kernel: Kernel) -> list[Any]:
    """The variables that the code of a rule defines."""

    machine = target_of(AVX512).machine
    workload = rule.match(kernel, machine)
    assert workload is not None
    function = rule.apply(kernel, workload, rule.default(workload, machine), machine)
    found: list[Any] = []
    structural_walk(function.body, (tirx.For, lambda loop: found.append(loop.loop_var)))
    structural_walk(function.body, (tirx.AllocBuffer, lambda made: found.append(made.buffer)))
    return found


@pytest.mark.parametrize("target", runnable())
@settings(max_examples=7, deadline=None)
@given(
    shape=st.lists(st.sampled_from([1, 2, 3, 5, 16, 17, 40]), min_size=1, max_size=3),
    data=st.data(),
)
def test_numbers_whatever_the_rule(target: str, shape: list[int], data: st.DataObject) -> None:
    """A reduction, a copy and a chain in one kernel or in several, against numpy."""
    axis = data.draw(st.integers(0, len(shape) - 1))
    x = normal(shape)

    def build(builder: Any, x: Any) -> Any:
        total = builder.emit(op.sum(x, [axis], keepdims=True))
        joined = builder.emit(op.concat([x, total], axis))
        return builder.emit(op.multiply(joined, relax.const(2.0, F32)))

    expected = 2 * np.concatenate([x, x.sum(axis, keepdims=True)], axis)
    np.testing.assert_allclose(evaluate(build, [x], target), expected, rtol=1e-5, atol=1e-5)


def interleaved(parts: Sequence[Any], factor: int) -> Build:
    """Columns of several tensors in blocks by turns, out of the blocks."""
    count = len(parts)
    blocks, width, lanes = parts[0].shape

    def by_turns(*inputs: Any) -> Any:
        def element(b: Any, x: Any, lane: Any) -> Any:
            value = inputs[-1][b, x // factor, lane]
            for turn in reversed(range(count - 1)):
                value = tirx.if_then_else(x % factor == turn, inputs[turn][b, x // factor, lane], value)
            return value

        return te.compute((blocks, width * factor, lanes), element)

    def unpacked(x: Any) -> Any:
        return te.compute((blocks * lanes, width * factor), lambda c, j: x[c // lanes, j, c % lanes])

    return lambda builder, *inputs: builder.emit(
        builder.call_te(unpacked, builder.emit(builder.call_te(by_turns, *inputs)))
    )


@pytest.mark.parametrize("target", runnable())
@pytest.mark.parametrize("factor", [2, 3, 5])
@pytest.mark.parametrize("width", [1, 20])
def test_moves_that_would_run_as_plain_loops_together_run_apart(target: str, factor: int, width: int) -> None:
    parts = [normal((3, width, 16), seed) for seed in range(factor)]
    build = interleaved(parts, factor)
    expected = np.stack(parts, 2).reshape(3, width * factor, 16).swapaxes(1, 2).reshape(48, -1)
    np.testing.assert_array_equal(evaluate(build, parts, target), expected)
    if width > 1:
        assert only_rule(build, [(part.shape, F32) for part in parts], target) in ("rows", "transpose")
