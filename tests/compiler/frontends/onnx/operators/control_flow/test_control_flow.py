"""If, Loop and Scan against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest

import tensorwright
from compiler.errors import InputError, InputValueRequiredError, UnsupportedModelError
from compiler.frontends.onnx import import_onnx
from tests.compiler.frontends.onnx.operators.onnxruntime_check import assert_equal_to_onnxruntime

_LOOP = """
agraph (int64 M, bool go, float[N] x, float[2,N] w) => (float[N] y, float[K,2,N] ys, int64[K] numbers) {
  y, ys, numbers = Loop (M, go, x) <
      body = b (int64 i, bool c, float[N] a) => (bool c2, float[N] a2, float[2,N] e, int64 i2) {
    a2 = Add (a, x)
    limit = Constant <value_float=20.0> ()
    largest = ReduceMax <keepdims=0> (a2)
    c2 = %s
    e = Mul (a2, w)
    i2 = Identity (i)
  }>
}"""


def _random(*shape: int) -> np.ndarray:
    return (np.abs(np.random.default_rng(sum(shape)).standard_normal(shape)) + 1).astype(np.float32)


@pytest.mark.parametrize("condition", ["Identity (c)", "Less (largest, limit)"], ids=["counted", "ends-early"])
def test_loop_with_counts_and_sizes_known_at_run_time(condition: str) -> None:
    feeds = [
        {"M": np.array(m), "go": np.array(go), "x": _random(n), "w": _random(2, n)}
        for m, go, n in [(1, True, 3), (5, True, 3), (8, True, 1), (37, True, 4)]
    ]
    assert_equal_to_onnxruntime(_LOOP % condition, *feeds)


def test_loop_without_an_iteration_gives_empty_stacks() -> None:
    from tests.coverage.tvm_pipeline import import_and_build

    text = f'<ir_version: 8, opset_import: ["" : 17]> {_LOOP % "Identity (c)"}'
    run = import_and_build(onnx.parser.parse_model(text))
    for count, go in [(0, True), (4, False)]:
        x = _random(3)
        found = run({"M": np.array(count), "go": np.array(go), "x": x, "w": _random(2, 3)})
        np.testing.assert_array_equal(found["y"], x)
        assert found["ys"].shape == (0, 2, 3)
        assert found["numbers"].shape == (0,)


def test_while_loop_without_a_number_of_iterations() -> None:
    model = """
    agraph (float[N] x) => (float[N] y, float[K] sums) <bool t = {1}, float limit = {30.0}> {
      y, sums = Loop ("", t, x) <body = b (int64 i, bool c, float[L] a) => (bool c2, float[L] a2, float s) {
        a2 = Add (a, x)
        s = ReduceSum <keepdims=0> (a2)
        c2 = Less (s, limit)
      }>
    }"""
    assert_equal_to_onnxruntime(model, *({"x": _random(n)} for n in (1, 2, 5)))


@pytest.mark.parametrize("condition", ["Less (i, limit)", "Less (s, most)"], ids=["counted", "ends-early"])
def test_a_placeholder_in_the_state_may_have_other_axes_than_later_values(condition: str) -> None:
    model = """
    agraph (float[N] x) => (float[2,N] last, float[1] unread, float[N] y, float[K,N] ys)
        <bool t = {1}, int64 M = {1000}, float[1] undefined = {7.0}, int64 limit = {5}, float most = {40.0}> {
      last, unread, y, ys = Loop (M, t, undefined, undefined, x) <
          body = b (int64 i, bool c, float[1] p, float[1] q, float[L] a) =>
              (bool c2, float[2,L] p2, float[1] q2, float[L] a2, float[L] e) {
        a2 = Add (a, x)
        axis = Constant <value_ints=[0]> ()
        row = Unsqueeze (a2, axis)
        p2 = Concat <axis=0> (row, row)
        q2 = Identity (q)
        s = ReduceSum <keepdims=0> (a2)
        e = Mul (a2, a2)
        c2 = %s
      }>
    }"""
    assert_equal_to_onnxruntime(model % condition, *({"x": _random(n)} for n in (1, 2, 5)))


def test_state_that_grows_in_every_iteration() -> None:
    model = """
    agraph (float[N] x, int64 M) => (float[K] y) <bool t = {1}> {
      y = Loop (M, t, x) <body = b (int64 i, bool c, float[L] a) => (bool c2, float[L2] a2) {
        a2 = Concat <axis=0> (a, x)
        c2 = Identity (c)
      }>
    }"""
    assert_equal_to_onnxruntime(model, *({"x": _random(n), "M": np.array(m)} for n, m in [(3, 0), (3, 1), (2, 9)]))


def test_nested_loops_see_outer_values() -> None:
    model = """
    agraph (float[N] x, int64 M, int64 M2) => (float[N] y, float[K,N] ys) <bool t = {1}> {
      y, ys = Loop (M, t, x) <body = b (int64 i, bool c, float[L] a) => (bool c2, float[L] a2, float[N] s) {
        a2, q = Loop (M2, c, a) <body = b2 (int64 i3, bool c3, float[L] a3) => (bool c4, float[L] a4, float[L] q4) {
          half = Constant <value_float=0.5> ()
          a5 = Mul (a3, half)
          number = Cast <to=1> (i)
          a6 = Add (a5, number)
          a4 = Add (a6, x)
          q4 = Identity (a4)
          c4 = Identity (c3)
        }>
        axis = Constant <value_ints=[0]> ()
        s = ReduceSum <keepdims=0> (q, axis)
        c2 = Identity (c)
      }>
    }"""
    feeds = [{"x": _random(n), "M": np.array(m), "M2": np.array(k)} for n, m, k in [(3, 1, 1), (2, 4, 3), (2, 3, 7)]]
    assert_equal_to_onnxruntime(model, *feeds)


@pytest.mark.parametrize("length", ["T", "6"], ids=["dynamic", "static"])
def test_scan_with_axes_and_directions(length: str) -> None:
    model = """
    agraph (float[B,2] h0, float[B,T,2] x, float[T,B] u) => (float[B,2] h, float[B,T,2] hs, float[T,B] us) {
      h, hs, us = Scan (h0, x, u) <num_scan_inputs=2, scan_input_axes=[1,0], scan_input_directions=[1,0],
          scan_output_axes=[1,0], scan_output_directions=[0,1],
          body = b (float[B,2] a, float[B,2] xi, float[B] ui) => (float[B,2] a2, float[B,2] o, float[B] uo) {
        o1 = Tanh (a)
        o = Add (o1, xi)
        axis = Constant <value_ints=[1]> ()
        column = Unsqueeze (ui, axis)
        a2 = Mul (o, column)
        uo = ReduceSum <keepdims=0> (a2, axis)
      }>
    }""".replace("T,", f"{length},").replace(",T", f",{length}")
    sizes = [(1, 6), (3, 6)] if length == "6" else [(1, 1), (2, 3), (3, 9)]
    assert_equal_to_onnxruntime(
        model, *({"h0": _random(b, 2), "x": _random(b, t, 2), "u": _random(t, b)} for b, t in sizes)
    )


def test_branches_of_different_sizes() -> None:
    model = """
    agraph (float[N,4] x, bool c) => (float[K,4] z) {
      y = If (c) <
        then_branch = a () => (float[K,4] o) { o = Concat <axis=0> (x, x) },
        else_branch = b () => (float[K,4] o2) { o2 = Tanh (x) }>
      r = Relu (y)
      z = Concat <axis=0> (r, x)
    }"""
    assert_equal_to_onnxruntime(model, *({"x": _random(n, 4), "c": np.array(c)} for n in (1, 3) for c in (True, False)))


_RANKS = """<ir_version: 8, opset_import: ["" : 17]>
agraph (float[2] x, int64[1] n) => (float[K] y) {
  zero = Constant <value_ints=[0]> ()
  c1 = Greater (n, zero)
  y = If (c1) <
    then_branch = a () => (float[K,4] o) { o = Unsqueeze (x, zero) },
    else_branch = b () => (float[K] o2) { o2 = Tanh (x) }>
}"""


def test_branches_of_different_ranks_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="2 dimensions in one branch and 1 in the other"):
        import_onnx(onnx.parser.parse_model(_RANKS))


def test_branches_of_one_element_have_the_axes_that_they_declare() -> None:
    model = """
    agraph (float x, bool c) => (float[1] z) {
      y = If (c) <
        then_branch = a () => (float o) { o = Constant <value_float=2.0> () },
        else_branch = b () => (float o2) { zero = Constant <value_floats=[0.0]> () o2 = Add (x, zero) }>
      one = Constant <value_floats=[1.0]> ()
      z = Add (y, one)
    }"""
    assert_equal_to_onnxruntime(model, *({"x": np.array(3, np.float32), "c": np.array(c)} for c in (True, False)))


def test_a_known_condition_takes_its_branch() -> None:
    imported = import_onnx(onnx.parser.parse_model(_RANKS), constants={"n": np.array([0])})
    assert imported.outputs[0].shape == (2,)


def test_a_sequence_that_grows_at_its_front_needs_the_number_of_iterations() -> None:
    model = """<ir_version: 8, opset_import: ["" : 17]>
    agraph (float[2] x, int64 M) => (float[K] y) <bool t = {1}, int64 front = {0}> {
      none = SequenceEmpty ()
      s = Loop (M, t, none) <body = b (int64 i, bool c, seq(float[2]) a) => (bool c2, seq(float[2]) a2) {
        a2 = SequenceInsert (a, x, front)
        c2 = Identity (c)
      }>
      y = ConcatFromSequence <axis=0> (s)
    }"""
    with pytest.raises(InputValueRequiredError, match="'M'"):
        import_onnx(onnx.parser.parse_model(model))
    assert import_onnx(onnx.parser.parse_model(model), constants={"M": np.array(3)}).outputs[0].shape == (6,)


def test_a_branch_that_does_not_fit_the_shapes_is_never_taken() -> None:
    """One model with a branch for each of two input sizes; a run checks that the condition selects the right one."""
    from tests.coverage.tvm_pipeline import import_and_build

    model = """<ir_version: 8, opset_import: ["" : 17]>
    agraph (float[N] x, bool c) => (float[M] y) <float[3] three = {1.0, 2.0, 3.0}, float[2] two = {1.0, 2.0}> {
      y = If (c) <
        then_branch = a () => (float[3] o) { o = Add (x, three) },
        else_branch = b () => (float[2] o2) { o2 = Add (x, two) }>
    }"""
    run = import_and_build(onnx.parser.parse_model(model), shapes={"x": (3,)})
    x = np.ones(3, np.float32)
    np.testing.assert_array_equal(run({"x": x, "c": np.array(True)})["y"], [2, 3, 4])
    with pytest.raises(RuntimeError, match="match_cast"):
        run({"x": x, "c": np.array(False)})


def test_a_loop_passes_through_every_phase() -> None:
    """The project's own pipeline moves constants and checks between the functions made from a loop."""
    import compiler
    from tests.compiler.frontends.onnx.operators.onnxruntime_check import run_reference

    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {_LOOP % "Identity (c)"}')
    feeds = {"M": np.array(5), "go": np.array(True), "x": _random(3), "w": _random(2, 3)}
    found = compiler.compile(model, reference_inputs=feeds).run(feeds)
    for result, expected in zip(found.values(), run_reference(model, feeds), strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-5)


_SCAN_8 = """<ir_version: 8, opset_import: ["" : 8]>
agraph (int64[B] lengths, float[B,2] h0, float[B,T,2] x, float[B,T,2] u) => (float[B,2] h, float[B,T,2] hs) {
  h, hs = Scan (lengths, h0, x, u) <num_scan_inputs=2, directions=%s,
      body = b (float[2] s, float[2] a, float[2] c) => (float[2] s2, float[2] r) {
    p = Mul (a, c)
    s2 = Add (s, p)
    r = Sub (s2, c)
  }>
}"""


@pytest.mark.parametrize("directions", ["[0, 0]", "[1, 0]", "[1, 1]"])
def test_entries_of_the_first_scan_end_at_their_lengths(directions: str) -> None:
    feeds = [
        {"lengths": np.array(lengths), "h0": _random(batch, 2), "x": _random(batch, steps, 2)}
        | {"u": _random(batch, steps, 2) * 2}
        for batch, steps, lengths in [(3, 5, [5, 2, 1]), (1, 2, [1]), (2, 4, [4, 4])]
    ]
    assert_equal_to_onnxruntime(onnx.parser.parse_model(_SCAN_8 % directions), *feeds)


def test_lengths_of_a_scan_beyond_its_steps_are_an_error() -> None:
    module = tensorwright.compile(onnx.parser.parse_model(_SCAN_8 % "[0, 0]"), progress=None)
    data = _random(1, 3, 2)
    with pytest.raises(InputError, match="'lengths'"):
        module.run({"lengths": np.array([4]), "h0": _random(1, 2), "x": data, "u": data})
