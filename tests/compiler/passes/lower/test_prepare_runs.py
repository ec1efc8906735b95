"""Runs of equal sizes share inner tensors, but never results."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

import compiler
import schedules.ir.load_tvm  # noqa: F401  (loads TVM without torch)
from compiler.runtime import Module

_HEADER = '<ir_version: 8, opset_import: ["" : 17]>'
ROWS = (3, 3, 3, 5, 3, 3, 5, 5, 5, 0, 0, 0, 1, 1, 1)
Arrays = dict[str, np.ndarray[Any, Any]]


def _compiled(graph: str) -> Module:
    return compiler.compile(onnx.parser.parse_model(f"{_HEADER} agraph {graph}"), threads=1, records=False)


def _entries(module: Module, entry: str = "tensorwright_run") -> bool:
    machine = module.prepare(
        [np.zeros([2 if isinstance(size, str) else size for size in each.shape], each.dtype) for each in module.inputs]
    )[0]
    return bool(machine.implements_function(entry))


# Softmax and MatMul are kernels of their own: their results are tensors between kernels.
GRAPHS = {
    "a chain": """(float[n, 4] x) => (float[n, 4] y)
        <float[4, 4] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, 7}> {
        a = Softmax(x) b = MatMul(a, w) c = Softmax(b) y = MatMul(c, w) }""",
    "a result that is also read": """(float[n, 4] x) => (float[n, 4] a, float[n, 4] y) {
        a = Softmax(x) b = Neg(a) y = Softmax(b) }""",
    "a view of a tensor that is also read": """(float[n, 4] x) => (float[m, 2] v, float[n, 4] y)
        <int64[2] s = {-1, 2}> { a = Softmax(x) v = Reshape(a, s) y = Softmax(a) }""",
    "an input, and one tensor twice": """(float[n, 4] x) => (float[n, 4] x2, float[n, 4] a, float[n, 4] b) {
        x2 = Identity(x) a = Softmax(x) b = Identity(a) }""",
    "a branch": """(float[n, 4] x) => (float[n, 4] y) {
        a = Softmax(x) sum = ReduceSum <keepdims = 0> (x) zero = Constant <value_float = 0.0> () c = Greater(sum, zero)
        b = If (c) <then_branch = t () => (float[n, 4] u) { u = Identity(a) },
                    else_branch = e () => (float[n, 4] v) { d = Neg(a) v = Softmax(d) }>
        y = Softmax(b) }""",
    "sizes that depend on values": """(float[n, 4] x) => (int64[2, k] i, float[n, 4] y) {
        a = Softmax(x) i = NonZero(x) y = Softmax(a) }""",
    "such sizes beside known ones": """(float[n, 4] x) => (int64[2, k] i, float[4] y) <int64[1] axis = {0}> {
        s = ReduceSum <keepdims = 0> (x, axis) a = Softmax(s) i = NonZero(x) b = Neg(a) y = Softmax(b) }""",
}


@pytest.mark.parametrize("name", GRAPHS)
def test_results_of_many_runs(name: str) -> None:
    module = _compiled(GRAPHS[name])
    reference = onnx.reference.ReferenceEvaluator(onnx.parser.parse_model(f"{_HEADER} agraph {GRAPHS[name]}"))
    generator = np.random.default_rng(0)
    runs: list[tuple[Arrays, Arrays]] = []
    for rows in ROWS:
        inputs = {"x": generator.standard_normal((rows, 4), np.float32)}
        runs.append((inputs, module.run(inputs)))
    for inputs, outputs in runs:  # after all of them: none may lie in memory that a later run wrote
        for expected, actual in zip(reference.run(None, inputs), outputs.values(), strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_which_models_are_prepared() -> None:
    assert _entries(_compiled(GRAPHS["a chain"]))
    assert _entries(_compiled(GRAPHS["such sizes beside known ones"]))
    assert not _entries(_compiled(GRAPHS["sizes that depend on values"]))


def test_which_results_are_prepared() -> None:
    kept = "a chain", "a result that is also read", "a view of a tensor that is also read", "a branch"
    others = "an input, and one tensor twice", "sizes that depend on values"
    found = {name: _entries(_compiled(GRAPHS[name]), "tensorwright_run_keeping") for name in (*kept, *others)}
    assert found == dict.fromkeys(kept, True) | dict.fromkeys(others, False)


def test_small_and_large_results_stay_the_callers_own() -> None:
    module = _compiled(GRAPHS["a result that is also read"])
    results: list[tuple[np.ndarray[Any, Any], Arrays]] = []
    for rows in (3, 3, 3, 2000, 2000, 2000, 3, 3):  # 2000 rows are 64 KB of results, which are not copied
        x = np.full((rows, 4), len(results), np.float32)
        x[:, 0] += 1
        given: Any = {"dlpack": {"outputs": "dlpack"}, "out": {"out": {"y": np.empty((rows, 4), np.float32)}}, "": {}}
        for options in given.values():
            outputs = module.run([x], **options)
            results.append((x, {name: np.from_dlpack(value) for name, value in outputs.items()}))
    for x, outputs in results:
        first = np.exp(x - x.max(1, keepdims=True))
        first /= first.sum(1, keepdims=True)
        np.testing.assert_allclose(outputs["a"], first, rtol=1e-5)
        second = np.exp(-first)
        np.testing.assert_allclose(outputs["y"], second / second.sum(1, keepdims=True), rtol=1e-5)
        assert outputs["a"].flags.writeable
