"""Loops compiled to kernels, and loops that cannot be, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx.parser
import pytest
from tvm import relax
from tvm.ir import IRModule

import compiler
from schedules.annotations import LOOP
from tests.compiler.frontends.onnx.operators.onnxruntime_check import run_reference

Feeds = Mapping[str, np.ndarray]
GO = np.array(True)


def _random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def _compiled(text: str, threads: int = 1, **options: Any) -> tuple[onnx.ModelProto, compiler.Module, list[int]]:
    """The model, its module, and the number of loops left to the virtual machine."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> agraph {text}')
    left: list[int] = []

    def count(mod: IRModule) -> IRModule:
        functions = (each for _, each in mod.functions_items() if isinstance(each, relax.Function))
        left.append(sum(LOOP in (each.attrs or {}) for each in functions))
        return mod

    passes = {"after:compile-loops": count}
    module = compiler.compile(model, threads=threads, progress=None, passes=passes, **options)
    return model, module, left


def _check(text: str, feeds: Sequence[Feeds], loops_left: int = 0, threads: int = 1, rtol: float = 1e-5) -> None:
    model, module, left = _compiled(text, threads)
    assert left == [loops_left]
    for feed in feeds:
        expected = run_reference(model, feed)
        for found, reference in zip(module.run(dict(feed)).values(), expected, strict=True):
            assert (found.dtype, found.shape) == (reference.dtype, reference.shape)
            np.testing.assert_allclose(found, reference, rtol=rtol, atol=1e-6)


_COUNTED = """(int64 M, bool go, float[N] x, float[2,N] w) => (float[N] y, float[K,2,N] ys, int64[K] numbers) {
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


@pytest.mark.parametrize(("condition", "left"), [("Identity (c)", 1), ("Less (largest, limit)", 1)])
def test_stacks_of_a_number_of_iterations_that_is_known_when_running(condition: str, left: int) -> None:
    """They are run in parts of at most 64 iterations, which the virtual machine joins."""
    sizes = [(1, 3), (2, 16), (63, 3), (64, 1), (65, 4), (200, 3), (300, 64)]
    feeds = [{"M": np.array(m), "go": GO, "x": np.abs(_random(n)) / 8 + 0.01, "w": _random(2, n)} for m, n in sizes]
    _check(_COUNTED % condition, feeds, loops_left=left)


def test_a_loop_without_iterations_and_one_over_nothing() -> None:
    _, module, _ = _compiled(_COUNTED % "Identity (c)")
    for count, go in [(0, True), (4, False)]:
        found = module.run({"M": np.array(count), "go": np.array(go), "x": _random(3), "w": _random(2, 3)})
        np.testing.assert_array_equal(found["y"], _random(3))
        assert (found["ys"].shape, found["numbers"].shape) == ((0, 2, 3), (0,))
    nothing = np.zeros(0, np.float32)
    found = module.run({"M": np.array(70), "go": GO, "x": nothing, "w": nothing.reshape(2, 0)})
    assert (found["ys"].shape, found["y"].shape) == ((70, 2, 0), (0,))
    np.testing.assert_array_equal(found["numbers"], np.arange(70))


def test_condition_alone_ends_a_loop() -> None:
    text = """(float[N] x) => (float[N] y, float[N] before, float last)
        <bool t = {1}, float limit = {90.0}, float z = {0.0}> {
      y, before, last = Loop ("", t, x, x, z) <body = b (int64 i, bool c, float[L] a, float[L] p, float s0)
          => (bool c2, float[L] a2, float[L] p2, float s) {
        a2 = Add (a, x)
        p2 = Identity (a)
        s = ReduceSum <keepdims=0> (a2)
        c2 = Less (s, limit)
      }>
    }"""
    _check(text, [{"x": np.abs(_random(n)) + 0.1} for n in (1, 2, 5, 64, 1000)])


def test_values_of_the_state_that_change_places_stay_or_are_stacked() -> None:
    text = """(float[4,16] x, float[4,16] u, bool[3] f, int8[5] k)
        => (float[4,16] p, float[4,16] q, bool[3] g, int8[5] n,
            float[K,4,16] ps, float[K,4,16] rs, bool[K,3] gs, int8[K,5] ns)
        <int64 m = {300}, bool t = {1}, int8[1] two = {2}> {
      p, q, same, g, n, ps, rs, gs, ns = Loop (m, t, x, u, u, f, k) <
          body = b (int64 i, bool c, float[4,16] a, float[4,16] b0, float[4,16] s, bool[3] h, int8[5] j)
          => (bool c2, float[4,16] b1, float[4,16] a1, float[4,16] s1, bool[3] h2, int8[5] j2,
            float[4,16] e, float[4,16] r, bool[3] h3, int8[5] j3) {
        b1 = Identity (b0)
        r = Tanh (a)
        a1 = Add (r, s)
        s1 = Identity (s)
        h2 = Not (h)
        j2 = Add (j, two)
        e = Identity (a)
        h3 = Identity (h)
        j3 = Identity (j2)
        c2 = Identity (c)
      }>
    }"""
    feed = {"x": _random(4, 16), "u": _random(16, 4).T.copy(), "f": np.array([True, False, True])}
    _check(text, [{**feed, "k": np.arange(5, dtype=np.int8)}])


def test_nested_loops_are_kernels_that_call_kernels() -> None:
    text = """(float[N] x, int64 M, int64 M2) => (float[N] y) <bool t = {1}> {
      y = Loop (M, t, x) <body = b (int64 i, bool c, float[L] a) => (bool c2, float[L] a3) {
        a2 = Loop (M2, c, a) <body = b2 (int64 i3, bool c3, float[L] a3) => (bool c4, float[L] a4) {
          half = Constant <value_float=0.5> ()
          a5 = Mul (a3, half)
          number = Cast <to=1> (i)
          a6 = Add (a5, number)
          a4 = Add (a6, x)
          c4 = Identity (c3)
        }>
        a3 = Sin (a2)
        c2 = Identity (c)
      }>
    }"""
    feeds = [{"x": _random(n), "M": np.array(m), "M2": np.array(k)} for n, m, k in [(3, 1, 1), (2, 40, 3), (5, 3, 70)]]
    model, module, left = _compiled(text)
    assert left == [0]
    for feed in feeds:
        (expected,) = run_reference(model, feed)
        np.testing.assert_allclose(module.run(dict(feed))["y"], expected, rtol=1e-5, atol=1e-5)


def test_branches_are_steps() -> None:
    text = """(float[N] x, float[N] u) => (float[N] y, int64 count) <int64 m = {400}, bool t = {1}, int64 z = {0}> {
      y, count = Loop (m, t, x, z) <
          body = b (int64 i, bool c, float[L] a, int64 n) => (bool c2, float[L] a2, int64 n2) {
        s = ReduceSum <keepdims=0> (a)
        zero = Constant <value_float=0.0> ()
        one = Constant <value_int=1> ()
        up = Less (s, zero)
        a2, n2 = If (up) <
          then_branch = p () => (float[L] o, int64 k) { o = Add (a, u)  k = Add (n, one) },
          else_branch = q () => (float[L] o2, int64 k2) { h = Mul (a, u) o2 = Sub (h, u)  k2 = Identity (n) }>
        c2 = Identity (c)
      }>
    }"""
    _check(text, [{"x": _random(n), "u": np.abs(_random(n)) / 4} for n in (1, 5, 32)], rtol=1e-4)


@pytest.mark.parametrize("length", ["T", "300"])
def test_scan_with_axes_and_directions(length: str) -> None:
    text = """(float[B,16] h0, float[B,T,16] x, float[T,B] u) => (float[B,16] h, float[B,T,16] hs, float[T,B] us) {
      h, hs, us = Scan (h0, x, u) <num_scan_inputs=2, scan_input_axes=[1,0], scan_input_directions=[1,0],
          scan_output_axes=[1,0], scan_output_directions=[0,1],
          body = b (float[B,16] a, float[B,16] xi, float[B] ui) => (float[B,16] a2, float[B,16] o, float[B] uo) {
        o1 = Tanh (a)
        o = Add (o1, xi)
        axis = Constant <value_ints=[1]> ()
        column = Unsqueeze (ui, axis)
        a2 = Mul (o, column)
        uo = ReduceSum <keepdims=0> (a2, axis)
      }>
    }""".replace("T,", f"{length},").replace(",T", f",{length}")
    sizes = [(2, 300)] if length == "300" else [(1, 1), (2, 3), (3, 129)]
    _check(text, [{"h0": _random(b, 16), "x": _random(b, t, 16), "u": _random(t, b)} for b, t in sizes])


def test_scan_over_nothing() -> None:
    text = """(float[3] h0, float[T,3] x) => (float[3] h, float[T,3] hs) {
      h, hs = Scan (h0, x) <num_scan_inputs=1, body = b (float[3] a, float[3] xi) => (float[3] a2, float[3] o) {
        a2 = Add (a, xi)  o = Mul (a, xi) }> }"""
    _, module, _ = _compiled(text)
    found = module.run({"h0": _random(3), "x": np.zeros((0, 3), np.float32)})
    np.testing.assert_array_equal(found["h"], _random(3))
    assert found["hs"].shape == (0, 3)


def test_kernels_that_threads_share_and_states_that_are_updated_in_place() -> None:
    text = """(float[64,256] x, float[256,256] w, float[300,64,256] all)
        => (float[64,256] y, float[300,64,256] kept, float[64,256] z)
        <int64 m = {300}, bool t = {1}, int64[1] shape = {1}> {
      y, kept = Loop (m, t, x, all) <body = b (int64 i, bool c, float[64,256] a, float[300,64,256] k)
          => (bool c2, float[64,256] a2, float[300,64,256] k2) {
        p = MatMul (a, w)
        a2 = Tanh (p)
        at = Reshape (i, shape)
        zero = Constant <value_ints=[0]> ()
        row = Unsqueeze (a2, zero)
        place = Unsqueeze (at, zero)
        k2 = ScatterND (k, place, row)
        c2 = Identity (c)
      }>
      q = MatMul (y, w)
      z = Tanh (q)
    }"""
    w = _random(256, 256) / 32
    feed = {"x": _random(64, 256), "w": w, "all": np.zeros((300, 64, 256), np.float32)}
    _check(text, [feed], threads=2, rtol=1e-4)


def test_loops_that_change_sizes_stay_with_the_virtual_machine() -> None:
    text = """(float[N] x, int64 M) => (float[K] y) <bool t = {1}> {
      y = Loop (M, t, x) <body = b (int64 i, bool c, float[L] a) => (bool c2, float[L2] a2) {
        a2 = Concat <axis=0> (a, x)
        c2 = Identity (c)
      }>
    }"""
    _check(text, [{"x": _random(n), "M": np.array(m)} for n, m in [(3, 0), (3, 1), (2, 9)]], loops_left=1)


def test_an_exported_module_holds_its_loops(tmp_path: Any) -> None:
    model, module, _ = _compiled(_COUNTED % "Identity (c)")
    module.export(tmp_path / "loop.twm")
    feed = {"M": np.array(130), "go": GO, "x": _random(7), "w": _random(2, 7)}
    found = compiler.load(tmp_path / "loop.twm", threads=1).run(feed)
    for result, reference in zip(found.values(), run_reference(model, feed), strict=True):
        np.testing.assert_allclose(result, reference, rtol=1e-5, atol=1e-5)
