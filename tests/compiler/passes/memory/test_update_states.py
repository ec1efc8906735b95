"""update-states: states are updated in place, and old values that are still needed survive."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
from numpy.typing import NDArray
from tvm import relax, tirx

import targets
from compiler.passes.context import PassOptions, PipelineContext
from compiler.passes.pipeline import run_pipeline
from compiler.passes.rewriting.graph import bindings_of
from compiler.passes.rewriting.state_writes import write_positions, write_rows
from compiler.passes.verify import flatten
from schedules.ir.tir import structural_walk
from tests.unoptimized import unoptimized_machine

op = relax.op
Array = NDArray[Any]
States = tuple[tuple[int, int], ...]


def tensor(name: str, *shape: Any, dtype: str = "float32") -> relax.Var:
    return relax.Var(name, relax.TensorType(shape, dtype))


def module(inputs: list[relax.Var], body: Callable[..., list[Any]]) -> tvm.IRModule:
    builder = relax.BlockBuilder()
    with builder.function("main", inputs):
        with builder.dataflow():
            result = builder.emit_output(relax.Tuple(body(builder, *inputs)))
        builder.emit_func_output(result)
    return builder.finalize()


def run(mod: tvm.IRModule, states: States, *inputs: Array) -> tuple[tvm.IRModule, list[Array], list[Array]]:
    """The lowered module, its results, and the inputs after the run."""
    final = run_pipeline(mod, PipelineContext(options=PassOptions(states=states))).mod
    machine = unoptimized_machine(final, relax_pipeline=None)
    arguments = [tvm.runtime.tensor(each) for each in inputs]
    results = flatten(machine["main"](*arguments))
    return final, results, [each.numpy() for each in arguments]


def copies(mod: tvm.IRModule) -> int:
    """Calls that copy a whole tensor."""
    calls = [binding.value for binding in bindings_of(mod["main"].body)]
    functions = [call.op for call in calls if isinstance(call, relax.Call) and isinstance(call.op, relax.ExternFunc)]
    return sum(str(function.global_symbol) == "runtime.TVMTensorCopyFromTo" for function in functions)


RANDOM = np.random.default_rng(0)
CACHE, ROWS = RANDOM.standard_normal((2, 7, 5), "float32"), RANDOM.standard_normal((2, 3, 5), "float32")


@pytest.mark.parametrize("position", [np.int64(3), np.array([4, 0])], ids=["one", "of each sample"])
def test_rows_are_written_in_place_and_read_without_a_copy(position: Array) -> None:
    tokens, capacity = tirx.Var("tokens", "int64"), tirx.Var("capacity", "int64")
    inputs = [
        tensor("cache", 2, capacity, 5),
        tensor("rows", 2, tokens, 5),
        tensor("at", *position.shape, dtype="int64"),
    ]

    def body(builder: Any, cache: Any, rows: Any, at: Any) -> list[Any]:
        new = write_rows(builder, cache, rows, at, 1)
        return [new, op.sum(new, axis=[2])]

    lowered, results, after = run(module(inputs, body), ((0, 0),), CACHE, ROWS, np.asarray(position))
    expected = CACHE.copy()
    for sample, first in enumerate(np.broadcast_to(position, 2)):
        expected[sample, first : first + 3] = ROWS[sample]
    np.testing.assert_array_equal(after[0], expected)
    np.testing.assert_array_equal(results[0], expected)
    np.testing.assert_allclose(results[1], expected.sum(2), rtol=1e-5)
    allocated = [var for var in lowered.get_global_vars() if var.name_hint.endswith("_in_place")]
    assert copies(lowered) == 0
    assert len(allocated) == 1


def test_a_chain_of_writes_stays_in_place() -> None:
    inputs = [tensor("cache", 2, 7, 5), tensor("rows", 2, 3, 5), tensor("at", 3, dtype="int64")]

    def body(builder: Any, cache: Any, rows: Any, at: Any) -> list[Any]:
        first = write_positions(builder, cache, rows, at, 1)
        total = builder.emit(op.sum(first))
        second = write_positions(builder, first, builder.emit(op.negative(rows)), builder.emit(op.add(at, at)), 1)
        return [total, second]

    places = np.array([2, 0, 3])
    lowered, results, after = run(module(inputs, body), ((0, 1),), CACHE, ROWS, places)
    expected = CACHE.copy()
    expected[:, places] = ROWS
    np.testing.assert_allclose(results[0], expected.sum(), rtol=1e-4)
    expected[:, 2 * places] = -ROWS
    np.testing.assert_array_equal(after[0], expected)
    assert copies(lowered) == 0


def test_an_old_value_that_is_read_after_the_write_survives() -> None:
    inputs = [tensor("cache", 2, 7, 5), tensor("rows", 2, 3, 5), tensor("at", dtype="int64")]

    def body(builder: Any, cache: Any, rows: Any, at: Any) -> list[Any]:
        new = write_rows(builder, cache, rows, at, 1)
        scale = builder.emit(op.sum(new))
        return [op.multiply(cache, scale), new, cache]

    _, results, after = run(module(inputs, body), ((0, 1),), CACHE, ROWS, np.array(1))
    expected = CACHE.copy()
    expected[:, 1:4] = ROWS
    np.testing.assert_allclose(results[0], CACHE * expected.sum(), rtol=1e-4)
    np.testing.assert_array_equal(results[2], CACHE)
    np.testing.assert_array_equal(after[0], expected)


def test_states_can_be_swapped_and_are_no_other_results() -> None:
    inputs = [tensor("a", 4), tensor("b", 4), tensor("c", 4)]

    def body(builder: Any, a: Any, b: Any, c: Any) -> list[Any]:
        return [b, a, builder.emit(op.add(c, a)), c]

    a, b, c = (RANDOM.standard_normal(4, "float32") for _ in range(3))
    _, results, after = run(module(inputs, body), ((0, 0), (1, 1), (2, 2)), a, b, c)
    for got, expected in zip(after, (b, a, c + a), strict=True):
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(results[3], c)


def test_a_row_outside_is_an_error_before_the_write() -> None:
    inputs = [tensor("cache", 2, 7, 5), tensor("rows", 2, 3, 5), tensor("at", dtype="int64"), tensor("h", 5)]

    def body(builder: Any, cache: Any, rows: Any, at: Any, h: Any) -> list[Any]:
        doubled = builder.emit(op.add(h, h))
        return [write_rows(builder, cache, builder.emit(op.add(rows, doubled)), at, 1), doubled]

    final = run_pipeline(module(inputs, body), PipelineContext(options=PassOptions(states=((0, 0), (3, 1))))).mod
    machine = unoptimized_machine(final, relax_pipeline=None)
    cache, h = tvm.runtime.tensor(CACHE), tvm.runtime.tensor(np.ones(5, "float32"))
    for wrong in (5, -1, 2**62):
        with pytest.raises(Exception, match="outside of its capacity"):
            machine["main"](cache, tvm.runtime.tensor(ROWS), tvm.runtime.tensor(np.array(wrong)), h)
    np.testing.assert_array_equal(h.numpy(), np.ones(5, "float32"))
    np.testing.assert_array_equal(cache.numpy(), CACHE)


def test_kernels_of_graphics_processors_hold_no_assertions() -> None:
    inputs = [tensor("cache", 2, 7, 5), tensor("rows", 2, 3, 5), tensor("at", dtype="int64")]
    mod = module(inputs, lambda builder, cache, rows, at: [write_rows(builder, cache, rows, at, 1)])
    target = targets.get("h100")
    context = PipelineContext(target=target, machine=target.machine, options=PassOptions(states=((0, 0),)))
    kernels = [each for each in run_pipeline(mod, context).mod.functions.values() if isinstance(each, tirx.PrimFunc)]
    found: list[Any] = []
    for kernel in kernels:
        structural_walk(kernel.body, (tirx.AssertStmt, found.append))
    assert kernels
    assert not found
