"""Patterns of real exporters around dynamic sizes: ranges of floats, "to the end", transforms of whole signals."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from tvm import tirx

import compiler
from compiler.frontends.onnx.symbolic import Arithmetic, expression

HEADER = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]> graph'


def check(text: str, feeds: list[dict[str, np.ndarray]]) -> None:
    """Compile once, run at every size and compare with ONNX Runtime."""
    model = onnx.parser.parse_model(f"{HEADER} {text}")
    module = compiler.compile(model, threads=1)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for values in feeds:
        for found, wanted in zip(module.run(values).values(), session.run(None, values), strict=True):
            assert found.shape == wanted.shape
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("start", [0.0, 2.0, 0.5])
def test_a_range_of_floats_up_to_a_size(start: float) -> None:
    text = f"""(float[n,k] x) => (float[m] y) <float start = {{{start}}}, float step = {{1.0}}, int64 axis = {{1}}>
      {{ shape = Shape(x)
         size = Gather(shape, axis)
         limit = Cast<to: int = 1>(size)
         y = Range(start, limit, step) }}"""
    check(text, [{"x": floats(2, 7)}, {"x": floats(1, 3)}])


def test_a_range_of_floats_between_inputs() -> None:
    scalars = [(1.0, 4.1, 0.5), (1.0, -4.1, -0.5), (1.0, -4.1, 0.5)]
    feeds = [{name: np.array(v, np.float32) for name, v in zip("abc", values, strict=True)} for values in scalars]
    check("(float a, float b, float c) => (float[m] y) { y = Range(a, b, c) }", feeds)


@pytest.mark.parametrize("end", [3, 100_000, 1_000_000_000, 2**63 - 1])
def test_a_slice_to_the_end_takes_no_memory_for_it(end: int) -> None:
    """100,000 full rows would take 52 GB."""
    text = f"""(float[n,512,256] x) => (float[m,512,256] y) <int64[1] a = {{0}}, int64[1] b = {{{end}}}>
      {{ part = Slice(x, a, b, a)
         larger = Exp(part)
         y = Softmax(larger) }}"""
    check(text, [{"x": floats(1, 512, 256)}, {"x": floats(4, 512, 256)}])


def test_frames_of_a_padded_signal_without_its_last_axis() -> None:
    text = """(float[batch,samples] x) => (float[batch,frames,33,2] y)
      <int64[4] widths = {0, 20, 0, 12}, int64 step = {16}, float[64] window = {VALUES}>
      { padded = Pad(x, widths)
        more = Pad(padded, widths)
        y = STFT(more, step, window) }"""
    window = ",".join(f"{value:.6f}" for value in np.hanning(64))
    check(text.replace("VALUES", window), [{"x": floats(1, 200)}, {"x": floats(3, 131)}])


@pytest.mark.parametrize("unknown", ["?", "None", -1], ids=str)
def test_sizes_that_an_exporter_did_not_know_may_differ(unknown: str | int) -> None:
    info = onnx.helper.make_tensor_value_info
    shape = [unknown, 3, unknown, unknown]
    node = onnx.helper.make_node("ReduceMean", ["x"], ["y"], axes=[2, 3], keepdims=0)
    graph = onnx.helper.make_graph(
        [node], "g", [info("x", onnx.TensorProto.FLOAT, shape)], [info("y", onnx.TensorProto.FLOAT, [unknown, 3])]
    )
    model = onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 17)])
    module = compiler.compile(model, threads=1)
    for sizes in ((1, 3, 5, 9), (2, 3, 4, 4)):
        x = floats(*sizes)
        np.testing.assert_allclose(module.run([x])["y"], x.mean((2, 3)), rtol=1e-5, atol=1e-6)


def test_look_ups_of_positions_in_a_mask_with_a_size_of_its_own() -> None:
    """As in decoders with a cache, one kernel reads the sizes of the old part, the new part and the mask."""
    text = """(int64[batch,past] old, int64[batch,seq] new, int64[batch,total] mask) => (int64[b,m] y)
      <int64[1] flat_shape = {-1}, int64 two = {2}>
      { all = Concat<axis: int = 1>(old, new)
        flat = Reshape(mask, flat_shape)
        doubled = Mul(all, two)
        y = Gather(flat, doubled) }"""
    generator = np.random.default_rng(0)
    feeds = []
    for batch, past, new, total in ((2, 3, 2, 5), (1, 0, 4, 9), (3, 7, 1, 4)):
        sizes, low = {"old": (batch, past), "new": (batch, new)}, -(batch * total // 2)
        positions = {name: generator.integers(low, -low, shape) for name, shape in sizes.items()}
        feeds.append({**positions, "mask": generator.integers(-9, 9, (batch, total))})
    check(text, feeds)


def test_a_sum_of_integers_whose_sizes_are_equal_or_one() -> None:
    text = """(uint8[b,n] x, uint8[c,m] y) => (uint8[d,k] z)
      <float a = {0.5}, float b_scale = {0.25}, float c_scale = {0.75}, uint8 zero = {7}>
      { z = com.microsoft.QLinearAdd(x, a, zero, y, b_scale, zero, c_scale, zero) }"""
    generator = np.random.default_rng(0)
    shapes = [((2, 5), (2, 5)), ((1, 5), (3, 1)), ((4, 1), (1, 6))]
    check(text, [{"x": _bytes(generator, x), "y": _bytes(generator, y)} for x, y in shapes])


def _bytes(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return generator.integers(0, 256, shape).astype(np.uint8)


def test_a_shape_whose_zero_would_copy_a_quotient_by_it() -> None:
    """A zero in the shape copies the input's size, here a quotient by the same size: HuBERT's heads and frames."""
    text = """(float[a,b] x, float[k] like) => (float[p,q] y)
      <int64[1] minus = {-1}, int64[1] window = {4}, int64[1] step = {3}, int64[1] one = {1}>
      { long = Shape(like)
        last = Sub(long, window)
        steps = Div(last, step)
        frames = Add(steps, one)
        first = Concat<axis: int = 0>(frames, minus)
        rows = Reshape(x, first)
        turned = Transpose<perm: ints = [1, 0]>(rows)
        same = Reshape(turned, first)
        y = Exp(same) }"""
    check(text, [{"x": floats(6, 4), "like": floats(10)}, {"x": floats(5, 7), "like": floats(16)}])


def test_a_selection_never_divides_by_a_zero_of_its_condition() -> None:
    """TVM simplifies the sides of a selection by its condition, and refuses to divide by zero."""
    arithmetic = Arithmetic()
    rows, length = arithmetic.dimension("rows"), arithmetic.dimension("length")
    frames = arithmetic.simplify(tirx.floordiv(length - 400, expression(320)) + 1)
    quotient = tirx.floordiv(rows * 4, frames)
    is_zero, is_not = tirx.EQ(frames, expression(0)), tirx.NE(frames, expression(0))
    assert arithmetic.equal_is_proved(arithmetic.select(is_zero, quotient, frames), frames)
    assert arithmetic.equal_is_proved(arithmetic.select(is_not, rows, quotient), rows)
    assert isinstance(arithmetic.select(tirx.EQ(rows, expression(0)), quotient, frames), tirx.Select)


def test_sizes_rounded_to_multiples_of_a_size_stay_short() -> None:
    arithmetic = Arithmetic()
    size, limit = arithmetic.dimension("size"), arithmetic.dimension("limit")
    window = arithmetic.minimum(size, arithmetic.add(arithmetic.floor_divide(limit, 2), 1))
    rest = arithmetic.floor_mod(size, window)
    up = arithmetic.add(size, arithmetic.floor_mod(arithmetic.subtract(window, rest), window))
    down = arithmetic.subtract(up, arithmetic.floor_mod(up, window))
    assert arithmetic.equal_is_proved(down, up)
    assert arithmetic.equal_is_proved(arithmetic.divide(up, window), arithmetic.ceil_divide(size, window))
    lower = arithmetic.subtract(size, rest)
    assert arithmetic.equal_is_proved(arithmetic.divide(lower, window), arithmetic.floor_divide(size, window))
    assert all(arithmetic.not_negative(each) for each in (up, lower, arithmetic.multiply(up, lower)))
    assert not arithmetic.not_negative(arithmetic.subtract(lower, size))


def test_the_sign_of_a_formula_of_any_depth() -> None:
    arithmetic = Arithmetic()
    size = arithmetic.dimension("size")
    total = size
    for number in range(3000):
        total = tirx.Add(tirx.FloorDiv(total, expression(number + 2)), size)
    assert arithmetic.not_negative(total)
    assert not arithmetic.not_negative(tirx.Add(total, expression(-1)))


def test_windows_of_a_size_that_is_computed() -> None:
    """Windows of half of the lesser side, to which both sides are padded."""
    text = """(float[n,h,w,2] x) => (float[n,rows,window,columns,window,2] y)
      <int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] three = {3}>
      { n = Shape<start: int = 0, end: int = 1>(x)
        h = Shape<start: int = 1, end: int = 2>(x)
        w = Shape<start: int = 2, end: int = 3>(x)
        lesser = Min(h, w)
        half = Div(lesser, two)
        window = Add(half, one)
        rest_h = Mod(h, window)
        missing_h = Sub(window, rest_h)
        below = Mod(missing_h, window)
        rest_w = Mod(w, window)
        missing_w = Sub(window, rest_w)
        right = Mod(missing_w, window)
        pads = Concat<axis: int = 0>(zero, zero, zero, zero, zero, below, right, zero)
        padded = Pad(x, pads)
        height = Add(h, below)
        width = Add(w, right)
        rows = Div(height, window)
        columns = Div(width, window)
        shape = Concat<axis: int = 0>(n, rows, window, columns, window, two)
        y = Reshape(padded, shape) }"""
    check(text, [{"x": floats(*shape, 2)} for shape in ((2, 9, 13), (1, 16, 4), (3, 1, 1))])


def test_long_formulas_are_not_simplified(monkeypatch: pytest.MonkeyPatch) -> None:
    """TVM's analyzer takes seconds for some thousands of terms, and would be asked for each operator of a network."""
    arithmetic = Arithmetic()
    size = arithmetic.dimension("size")
    total = size
    for number in range(700):
        total = tirx.Add(tirx.FloorMod(total, expression(number + 2)), size)
    for name in ("simplify", "can_prove", "can_prove_equal"):
        monkeypatch.setattr(type(arithmetic.analyzer), name, lambda *_: pytest.fail("TVM's analyzer was asked"))
    longer = arithmetic.multiply(total, 3)
    assert arithmetic.equal_is_proved(longer, arithmetic.multiply(total, 3))
    assert not arithmetic.equal_is_proved(longer, total)
    assert not arithmetic.proved(tirx.LT(total, longer))
