"""python -m benchmarks.operators: single operators, and loops of hundreds of steps, against ONNX Runtime.

    python -m benchmarks.operators                    # all cases
    python -m benchmarks.operators TopK Scan --json FILE

One thread each, alternating, by the thread's processor time: microseconds per call, the minimum of many. Inputs of both
are aligned to 64 bytes. A case's name begins with the operator; arguments select cases by prefix.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx.parser

from benchmarks._models import chosen_cases

Array = np.ndarray
_ROUNDS, _TURN_SECONDS = 25, 0.02


@dataclass(frozen=True)
class Case:
    """A model in ONNX's textual form, and its inputs."""

    model: str
    inputs: dict[str, Array]


@dataclass(frozen=True)
class Row:
    """Microseconds per call; `ratio` is ONNX Runtime's time over ours; `error` the largest difference of a result, over
    the largest magnitude."""

    case: str
    ours: float
    onnxruntime: float
    ratio: float
    error: float


def cases() -> dict[str, Case]:
    """Return the cases by name."""
    return {**_selections(), **_images(), **_dynamic(), **_loops()}


def _random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _places(limit: int, *shape: int) -> Array:
    return np.random.default_rng(1).integers(0, limit, shape)


def _selections() -> dict[str, Case]:
    found = {}
    for rows, columns, k in ((1000, 10, 3), (1, 1000, 5), (512, 64, 8), (64, 1000, 10), (1, 8400, 100)):
        text = (
            f"(float[{rows},{columns}] x) => (float[r,k] y, int64[r,k] i) <int64[1] k = {{{k}}}> {{y, i = TopK(x, k)}}"
        )
        found[f"TopK {rows}x{columns}, k {k}"] = Case(text, {"x": _random(rows, columns)})
    for name, data, shape, axis in (
        ("last axis", (64, 1024), (64, 512), 1),
        ("last axis, short", (4096, 16), (4096, 4), 1),
        ("rows", (1024, 64), (512, 64), 0),
        ("middle", (8, 128, 64), (8, 32, 64), 1),
    ):
        text = f"""(float{_sizes(data)} x, int64{_sizes(shape)} i) => (float{_sizes(shape)} y) {{
            y = GatherElements<axis={axis}>(x, i)}}"""
        places = _places(data[axis], *shape)
        found[f"GatherElements {name}"] = Case(text, {"x": _random(*data), "i": places})
    for mode in ("TF", "TFIDF"):
        grams = list(range(200)) + [each for first in range(200) for each in (first, 7 * first % 200)]
        numbers = list(range(400))
        weights = [round(0.5 + each / 400, 4) for each in range(400)]
        text = f"""(int64[64,100] x) => (float[64,400] y) {{y = TfIdfVectorizer<mode="{mode}", min_gram_length=1,
            max_gram_length=2, max_skip_count=1, ngram_counts=[0, 200], ngram_indexes={numbers}, pool_int64s={grams},
            weights={weights}>(x)}}"""
        found[f"TfIdfVectorizer {mode}"] = Case(text, {"x": _places(220, 64, 100)})
    for count, size in ((1000, 3), (256, 8), (16, 64)):
        text = f"(float[{count},{size},{size}] x) => (float[{count}] y) {{y = Det(x)}}"
        found[f"Det {count}x{size}x{size}"] = Case(text, {"x": _random(count, size, size) / np.float32(size**0.5)})
    return found


def _sizes(shape: tuple[int, ...]) -> str:
    return f"[{','.join(map(str, shape))}]"


def _images() -> dict[str, Case]:
    found = {}
    for name, shape, out, options in (
        ("to twice", (1, 64, 56, 56), (112, 112), 'coordinate_transformation_mode="asymmetric", nearest_mode="floor"'),
        ("to twice, half pixel", (1, 3, 224, 224), (448, 448), 'coordinate_transformation_mode="half_pixel"'),
        ("to half", (1, 32, 112, 112), (56, 56), 'coordinate_transformation_mode="asymmetric", nearest_mode="floor"'),
        ("to 300", (1, 3, 224, 224), (300, 300), 'coordinate_transformation_mode="half_pixel"'),
    ):
        text = f"""(float{_sizes(shape)} x) => (float[{shape[0]},{shape[1]},{out[0]},{out[1]}] y)
            <int64[4] s = {{{shape[0]}, {shape[1]}, {out[0]}, {out[1]}}}> {{
            y = Resize<mode="nearest", {options}>(x, , , s)}}"""
        found[f"Resize nearest {name}"] = Case(text, {"x": _random(*shape)})
    for channels, side, kernel, stride in ((16, 56, 3, 1), (3, 64, 8, 8)):
        places = ((side - kernel) // stride + 1) ** 2
        text = f"""(float[1,{channels * kernel * kernel},{places}] x) => (float[1,{channels},{side},{side}] y)
            <int64[2] image = {{{side},{side}}}, int64[2] block = {{{kernel},{kernel}}}> {{
            y = Col2Im<strides=[{stride},{stride}]>(x, image, block)}}"""
        found[f"Col2Im {kernel}x{kernel}, stride {stride}"] = Case(
            text, {"x": _random(1, channels * kernel * kernel, places)}
        )
    return found


_LONG, _SHORT = (1, 32, 217, 221), (1, 32, 1500, 23)


def _dynamic() -> dict[str, Case]:
    """Operators on tensors of dynamic height and width, at odd sizes."""
    found = {}
    sides = "<int64[8] pads = {0, 0, 4, 4, 0, 0, 4, 4}>"
    filters = "w = ConstantOfShape<value = float[1] {0.5}>(s)"
    twice = "<float[4] scales = {1, 1, 2, 2}>"
    for name, shape, constants, nodes in (
        ("Sigmoid, short rows", _SHORT, "", "y = Sigmoid(x)"),
        ("Softmax, short rows", _SHORT, "", "y = Softmax(x)"),
        ("Softmax", _LONG, "", "y = Softmax(x)"),
        ("Pad", _LONG, sides, "y = Pad(x, pads)"),
        ("Pad by reflection", _LONG, sides, 'y = Pad<mode="reflect">(x, pads)'),
        ("Pad by edges", _LONG, sides, 'y = Pad<mode="edge">(x, pads)'),
        ("Concat of rows", _LONG, "", "r = Relu(x) y = Concat<axis=3>(x, r)"),
        ("Slice of rows", _LONG, "<int64[1] a = {3}, int64[1] b = {-5}>", "y = Slice(x, a, b, a)"),
        ("CumSum of rows", _LONG, "<int64 a = {3}>", "y = CumSum(x, a)"),
        ("Resize linear to twice", _LONG, twice, 'y = Resize<mode="linear">(x, , scales)'),
        ("MaxPool 3x3, stride 2", _LONG, "", "y = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)"),
        (
            "ConvTranspose 2x2",
            _LONG,
            "<int64[4] s = {32, 16, 2, 2}>",
            f"{filters} y = ConvTranspose<strides=[2,2]>(x, w)",
        ),
    ):
        text = f"(float[1,32,h,w] x) => (float[?,?,?,?] y) {constants} {{ {nodes} }}"
        found[f"Dynamic {name}"] = Case(text, {"x": _random(*shape)})
    return found


def _loops() -> dict[str, Case]:
    go = np.array(True)
    counted = """(int64 M, bool go, float[64] x, float[64] u) => (float[64] y, float[m,64] ys) {
      y, ys = Loop (M, go, x) <body = b (int64 i, bool c, float[64] a) => (bool c2, float[64] a2, float[64] e) {
        s = Mul (a, u)  t = Tanh (s)  a2 = Add (t, x)  e = Identity (a2)  c2 = Identity (c) }> }"""
    ends = """(bool go, float[64] x, float limit) => (float[64] y) {
      y = Loop ("", go, x) <body = b (int64 i, bool c, float[64] a) => (bool c2, float[64] a2) {
        a2 = Add (a, x)  s = ReduceMax<keepdims=0> (a2)  c2 = Less (s, limit) }> }"""
    scan = """(float[1,64] h0, float[300,1,32] x, float[64,64] w, float[32,64] v)
        => (float[1,64] h, float[300,1,64] hs) {
      h, hs = Scan <num_scan_inputs=1, body = b (float[1,64] a, float[1,32] xi) => (float[1,64] a2, float[1,64] o) {
        p = MatMul (a, w)  q = MatMul (xi, v)  r = Add (p, q)  a2 = Tanh (r)  o = Identity (a2) }> (h0, x) }"""
    gated = """(float[n,64] h0, float[t,n,64] x, float[64,64] w) => (float[n,64] h, float[t,n,64] hs) {
      h, hs = Scan <num_scan_inputs=1, body = b (float[n,64] a, float[n,64] xi) => (float[n,64] a2, float[n,64] o) {
        p = MatMul (a, w)  r = Add (p, xi)  z = Sigmoid (r)  g = Mul (z, a)  g2 = Tanh (r)  a2 = Add (g, g2)
        o = Identity (a2) }> (h0, x) }"""
    greedy = """(int64 M, bool go, int64[1] token, float[1,64] h, float[100,64] e, float[64,64] w, float[64,100] o)
        => (int64[1] t, float[1,64] s, int64[m,1] ts) {
      t, s, ts = Loop (M, go, token, h) <body = b (int64 i, bool c, int64[1] k, float[1,64] a)
          => (bool c2, int64[1] k2, float[1,64] a2, int64[1] k3) {
        v = Gather (e, k)  p = MatMul (a, w)  r = Add (p, v)  a2 = Tanh (r)  l = MatMul (a2, o)
        k2 = ArgMax <axis=1, keepdims=0> (l)  k3 = Identity (k2)  c2 = Identity (c) }> }"""
    steps = np.array(500)
    size = {"x": _random(64), "u": _random(64, seed=1)}
    cell = {"w": 0.1 * _random(64, 64, seed=2), "v": _random(32, 64, seed=3)}
    decoder = {"e": _random(100, 64), "w": 0.1 * _random(64, 64, seed=1), "o": _random(64, 100, seed=2)}
    return {
        "Loop counted, 500 steps": Case(counted, {"M": steps, "go": go, **size}),
        "Loop until a condition, 500 steps": Case(
            ends, {"go": go, "x": np.full(64, 0.5, np.float32), "limit": np.array(250, np.float32)}
        ),
        "Loop greedy decoder, 200 steps": Case(
            greedy, {"M": np.array(200), "go": go, "token": np.array([1]), "h": _random(1, 64), **decoder}
        ),
        "Scan cell, 300 steps": Case(scan, {"h0": _random(1, 64), "x": _random(300, 1, 32), **cell}),
        "Scan gated, symbolic, 300 steps": Case(
            gated, {"h0": _random(2, 64), "x": _random(300, 2, 64), "w": cell["w"] / 2}
        ),
    }


def main() -> int:
    """Parse the arguments, time each case, print the table; exits with 1 if a ratio is below 0.9."""
    chosen, path = chosen_cases("operators", __doc__, cases())
    print(f"{'us a call, one thread':40} {'ours':>9} {'ONNX Runtime':>13} {'ratio':>6} {'difference':>11}")
    rows = []
    for name, case in chosen.items():
        row = _measured(name, case)
        rows.append(row)
        print(f"{name:40} {row.ours:9.2f} {row.onnxruntime:13.2f} {row.ratio:6.2f} {row.error:11.1e}", flush=True)
    print(f"geometric mean of the ratios: {math.exp(sum(math.log(row.ratio) for row in rows) / len(rows)):.2f}")
    if path:
        path.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    return int(any(row.ratio < 0.9 for row in rows))


def aligned(array: Array) -> Array:
    """Return a copy that begins at a multiple of 64 bytes."""
    room = np.empty(array.nbytes + 64, np.uint8)
    start = -room.ctypes.data % 64
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def _measured(name: str, case: Case) -> Row:
    import onnxruntime

    import compiler

    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 22]> agraph {case.model}')
    inputs = {key: aligned(value) for key, value in case.inputs.items()}
    module = compiler.compile(model, threads=1, progress=None)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    outputs, expected = list(module.run(inputs).values()), session.run(None, inputs)
    calls = [lambda: module.run(inputs), lambda: session.run(None, inputs)]
    counts = [_calls_in_a_turn(call) for call in calls]
    best = [math.inf, math.inf]
    for _ in range(_ROUNDS):
        for place, (call, count) in enumerate(zip(calls, counts, strict=True)):
            best[place] = min(best[place], _seconds(call, count) / count)
    ours, other = (1e6 * each for each in best)
    return Row(name, ours, other, other / ours, max(map(_difference, outputs, expected)))


def _calls_in_a_turn(call: Callable[[], Any]) -> int:
    warm = min(_seconds(call, 1) for _ in range(10))  # the first calls allocate memory and map its pages
    return max(1, int(_TURN_SECONDS / max(warm, 1e-6)))


def _seconds(call: Callable[[], Any], count: int) -> float:
    start = time.thread_time()
    for _ in range(count):
        call()
    return time.thread_time() - start


def _difference(actual: Array, expected: Array) -> float:
    if actual.shape != expected.shape:
        return math.inf
    if not actual.size:
        return 0.0
    return float(np.abs(actual - expected).max() / max(float(np.abs(expected).max()), 1e-30))


if __name__ == "__main__":
    raise SystemExit(main())
