"""Inputs whose sizes or values do not fit a model give an error that names the node, before any data is read."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx.parser
import pytest

import compiler
from compiler.errors import InputError


def compiled(graph: str) -> compiler.Module:
    return compiler.compile(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> agraph {graph}'))


def ones(*shape: int) -> Any:
    return np.ones(shape, np.float32)


# graph; inputs that fit; inputs that do not; what the error says
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "broadcast": (
        "(float[n] x, float[m] y) => (float[k] z) { z = Add(x, y) }",
        {"x": ones(3), "y": ones(1)},
        {"x": ones(4), "y": ones(3)},
        r"Add node 'z': n = 4 and m = 3 must be equal, or one of them must be 1",
    ),
    "broadcast with a number": (
        "(float[3] x, float[m] y) => (float[k] z) { z = Add(x, y) }",
        {"x": ones(3), "y": ones(1)},
        {"x": ones(3), "y": ones(2)},
        r"Add node 'z': 3 and m = 2 must be equal, or one of them must be 1",
    ),
    "product": (
        "(float[a, b] x, float[c, d] y) => (float[e, f] z) { z = MatMul(x, y) }",
        {"x": ones(2, 3), "y": ones(3, 2)},
        {"x": ones(2, 3), "y": ones(4, 5)},
        r"MatMul node 'z': b = 3 must equal c = 4",
    ),
    "bias of a product": (
        """(float[a, 2] x) => (float[a, 2] z) {
            w = Constant<value = float[2, 2] {1, 2, 3, 4}>() b = Constant<value = float[3, 1] {1, 2, 3}>()
            z = Gemm(x, w, b) }""",
        {"x": ones(3, 2)},
        {"x": ones(1, 2)},
        r"Gemm node 'z': a = 1 must equal 3",
    ),
    "elements of a sequence": (
        "(float[a, b] x, float[c, d] y) => (float[e, f] z) {"
        " s = SequenceConstruct(x, y) z = ConcatFromSequence<axis = 0>(s) }",
        {"x": ones(3, 2), "y": ones(1, 2)},
        {"x": ones(3, 2), "y": ones(1, 3)},
        r"ConcatFromSequence node 'z': d = 3 must equal b = 2",
    ),
    "reshape": (
        "(float[a, b] x) => (float[e, f] z) { s = Constant<value = int64[2] {-1, 4}>() z = Reshape(x, s) }",
        {"x": ones(2, 6)},
        {"x": ones(2, 3)},
        r"Reshape node 'z': a \* b = 6 must equal \(\(a \* b\) // 4\) \* 4 = 4",
    ),
    "too small": (
        "(float[1, 1, h] x, float[1, 1, 5] w) => (float[p, q, r] z) { y = Conv(x, w) z = GlobalMaxPool(y) }",
        {"x": ones(1, 1, 5), "w": ones(1, 1, 5)},
        {"x": ones(1, 1, 3), "w": ones(1, 1, 5)},
        r"Conv node 'y': h - 4 = -1 must be at least 1",
    ),
    "index": (
        "(float[n, 2] x, int64[k] i) => (float[k, 2] z) { z = Gather(x, i) }",
        {"x": ones(3, 2), "i": np.array([-3, 2])},
        {"x": ones(3, 2), "i": np.array([0, 3])},
        r"Gather node 'z': input 'i' holds the index 3, outside of \[-3, 3\)",
    ),
    "index by way of operators that keep elements": (
        """(float[n, 2] x, int32[k, 1] i) => (float[k, 2] z) {
            l = Constant<value = int64[1] {-1}>() w = Cast<to = 7>(i) f = Reshape(w, l) z = Gather(x, f) }""",
        {"x": ones(3, 2), "i": np.array([[-3], [2]], np.int32)},
        {"x": ones(3, 2), "i": np.array([[0], [-4]], np.int32)},
        r"Gather node 'z': input 'i' holds the index -4, outside of \[-3, 3\)",
    ),
    "shape from values": (
        "(float[n] x, int64[2] s) => (float[a, b] z) { z = Reshape(x, s) }",
        {"x": ones(6), "s": np.array([2, -1])},
        {"x": ones(6), "s": np.array([4, 2])},
        r"Reshape node 'z': a dimension is 6, expected 8",
    ),
    "broadcast with a counted size": (
        "(float[n] x, bool[n] c, float[m] y) => (float[k] z) { s = Compress<axis = 0>(x, c) z = Add(s, y) }",
        {"x": ones(3), "c": np.array([True, False, True]), "y": ones(2)},
        {"x": ones(3), "c": np.array([True, True, True]), "y": ones(2)},
        r"Add node 'z': a relation of sizes does not hold: broadcast",
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_what_does_not_fit_is_named(case: tuple[str, dict[str, Any], dict[str, Any], str]) -> None:
    graph, good, bad, message = case
    module = compiled(graph)
    assert all(np.isfinite(value).all() for value in module.run(good).values())
    with pytest.raises(InputError, match=message):
        module.run(bad)
    assert all(np.isfinite(value).all() for value in module.run(good).values())


def test_a_branch_that_was_left_out_is_named() -> None:
    module = compiled(
        """(float[n, 3] x, bool c) => (float[p, q] y) {
            axis = Constant <value = int64[1] {1}> ()
            y = If <
                then_branch = t () => (a) { a = Softmax (x) },
                else_branch = e () => (b) { b = Squeeze (x, axis) }
            > (c)
        }"""
    )
    assert module.run({"x": ones(2, 3), "c": np.array(True)})["y"].shape == (2, 3)
    with pytest.raises(InputError, match=r"If node 'y': its condition is false, but only the other branch"):
        module.run({"x": ones(2, 3), "c": np.array(False)})


def test_requirements_are_kept_in_the_file(tmp_path: Any) -> None:
    module = compiled("(float[n] x, float[m] y, int64[k] i) => (float[k] z) { s = Add(x, y) z = Gather(s, i) }")
    module.export(tmp_path / "m.twm")
    again = compiler.load(tmp_path / "m.twm")
    assert again.manifest.requirements == module.manifest.requirements != ()
    with pytest.raises(InputError, match="Add node"):
        again.run({"x": ones(2), "y": ones(3), "i": np.array([0])})


@pytest.mark.parametrize(
    "graph",
    [
        "(float[n,8] x, float[8,3] w) => (float[n,k] y) { y = MatMul(x, w) }",
        "(float[n,8,5,5] x, float[4,8,3,3] w) => (float[n,k,h,v] y) { y = Conv(x, w) }",
    ],
)
def test_sizes_that_the_model_cannot_take_are_named(graph: str) -> None:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> agraph {graph}')
    given = (4, 9, 5, 5) if "Conv" in graph else (4, 9)
    with pytest.raises(InputError, match=r"cannot take 'x' as \[4, 9.*which it declares as \[n, 8") as caught:
        compiler.compile(model, shapes={"x": given})
    assert "declared sizes" in str(caught.value.hint)
