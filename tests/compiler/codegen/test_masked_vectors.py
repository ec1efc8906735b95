"""Ends of rows as masked vectors: the numbers, and no access behind the last element of an input."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import numpy as np
import onnx.parser
import pytest

import compiler
from tests.compiler.frontends.onnx.operators.onnxruntime_check import run_reference

Array = np.ndarray[Any, Any]

_BODIES = {
    "elementwise": "y = Sigmoid(x)",
    "broadcast along rows": "m = ReduceMax<keepdims = 1>(x, last) d = Sub(x, m) y = Exp(d)",
    "invariant function": "s = ReduceSumSquare<keepdims = 1>(x, last) l = Sqrt(s) y = Div(x, l)",
    "value used twice": "a = Add(x, x) y = Celu(a)",
    "softmax": "y = Softmax<axis = 2>(x)",
    "log-softmax": "y = LogSoftmax<axis = 2>(x)",
    "softmax of columns": "y = Softmax<axis = 1>(x)",
    "sum of rows": "y = ReduceSumSquare<keepdims = 0>(x, last)",
    "sum of columns": "y = ReduceSumSquare<keepdims = 0>(x, columns)",
    "largest of all": "y = ReduceMax<keepdims = 0>(x)",
    "conversions": "i = Cast<to = 3>(x) f = Cast<to = 1>(i) y = Add(f, x)",
    "integer division by a value used twice": (
        "i = Cast<to = 6>(x) a = Abs(i) t = Max(a, one) q = Div(i, t) m = Mul(q, t) y = Cast<to = 1>(m)"
    ),
    "running sums of columns": "y = CumSum(x, one)",
    "running sums of earlier rows": "y = CumSum<exclusive = 1, reverse = 1>(x, zero)",
    "rows joined": "t = Tanh(x) y = Concat<axis = 2>(t, x)",
    "part of a row": "s = Slice(x, from, to, last) y = Tanh(s)",
}
# Of more than 32 KiB and multiples of 64 bytes: others are copied before a run.
_SHAPES = [(128, 16, 5), (64, 16, 16), (32, 16, 23), (32, 16, 31), (16, 16, 67), (16, 16, 101)]


def _before_a_guard(values: Array) -> tuple[Array, mmap.mmap]:
    """A copy of the values whose last byte is followed by memory that may not be read."""
    size = -(-values.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, size + mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    assert protect(address + size, mmap.PAGESIZE, 0) == 0
    copy = np.frombuffer(memory, values.dtype, values.size, size - values.nbytes).reshape(values.shape)
    copy[...] = values
    return copy, memory


@pytest.mark.parametrize("dynamic", [True, False], ids=["dynamic", "fixed"])
@pytest.mark.parametrize("name", _BODIES)
def test_ends_of_rows(name: str, dynamic: bool) -> None:
    module = None
    for number, shape in enumerate(_SHAPES):
        sizes = "a, b, c" if dynamic else ", ".join(map(str, shape))
        model = onnx.parser.parse_model(
            f"""<ir_version: 10, opset_import: ["" : 21]> g (float[{sizes}] x) => (y)
            <int64[1] last = {{2}}, int64[2] columns = {{0, 1}}, int64[1] from = {{1}}, int64[1] to = {{-1}},
             int32 zero = {{0}}, int32 one = {{1}}> {{
                {_BODIES[name]}
            }}"""
        )
        if module is None or not dynamic:
            module = compiler.compile(model, threads=1)
        x = (4 * np.random.default_rng(number).standard_normal(shape)).astype(np.float32)
        guarded, _memory = _before_a_guard(x)
        (expected,) = run_reference(model, {"x": x})
        np.testing.assert_allclose(module.run([guarded])["y"], expected, rtol=2e-5, atol=2e-6)
