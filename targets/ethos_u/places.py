"""The place of the largest or smallest of quantized numbers, by operators that the accelerator has.

Vela takes TOSA's ARGMAX of up to 127 channels. Here, of any axis: what is furthest is told from the rest by its
difference, which is 0; the largest of the negated places of those, bytes again, is the first of them. Beyond 128
places that is done for their high and then for their low part. All of it is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from schedules.ir.tvm_types import Call, Expr
from targets.ethos_u.kernels import Kernel
from targets.ethos_u.steps import Array, Quantized, Unsupported
from targets.ethos_u.view import View, registered_name

_PART = 128  # places that a byte tells apart
_MOST = (_PART - 1) * _PART
_MOST_AXES = 4
_BEYOND = 256.0  # a step away from what is furthest: less than any place


def bytes_for_places(mod: tvm.IRModule) -> tvm.IRModule:
    """argmax and argmin of quantized tensors, as quantized operators and the negation of their result."""
    variable = mod.get_global_var("main")
    rewriter = _Rewriter(mod, View(mod))
    return tvm.IRModule({**mod.functions, variable: rewriter.visit_expr(mod["main"])}, attrs=mod.attrs)


@dataclass(frozen=True)
class _Wanted:
    """Reduction to an index: tensor, axis, smallest or largest, and whether the last of equal ones."""

    operand: Expr
    data: Quantized
    axis: int
    smallest: bool
    last: bool

    @property
    def size(self) -> int:
        return self.data.shape[self.axis]


def _wanted(view: View, call: Call) -> _Wanted:
    """Arguments that a call asks for. Raises Unsupported."""
    name = registered_name(call)
    if name in ("relax.argmax", "relax.argmin") and call.attrs.axis is not None:
        data = view.quantized(call.args[0])
        axis = int(call.attrs.axis) % len(data.shape)
        return _Wanted(call.args[0], data, axis, name == "relax.argmin", last=False)
    if name != "kernel.arg_extremum":
        raise Unsupported("it gives no place")
    operand = call.args[1].fields[0]
    data, kernel = view.quantized(operand), Kernel(view, call)
    numbers = np.random.default_rng(0).integers(-9, 10, data.shape).astype(np.float32)  # some are equal
    found = kernel(numbers)
    for axis, size in enumerate(data.shape):
        for smallest in (False, True):
            for last in (False, True):
                turned = np.flip(-numbers if smallest else numbers, axis) if last else -numbers if smallest else numbers
                index = turned.argmax(axis)
                index = size - 1 - index if last else index
                if index.size == found.size and np.array_equal(index.ravel(), found.ravel()):
                    return _Wanted(operand, data, axis, smallest, last)
    raise Unsupported("it gives the place of neither the largest nor the smallest")


@mutator
class _Rewriter(PyExprMutator):
    def __init__(self, mod: tvm.IRModule, view: View) -> None:
        super().__init__(mod)
        self._view = view

    def visit_call_(self, op: Expr) -> Expr:
        call = super().visit_call_(op)
        try:
            wanted = _wanted(self._view, op)
        except Unsupported:
            return call
        if len(wanted.data.shape) > _MOST_AXES or not 1 < wanted.size <= _MOST:
            return call
        place = self._place(self._differences(wanted), wanted)
        shaped = self._emit(relax.op.reshape(place, op.ty.shape))
        return self._emit(relax.op.astype(shaped, str(op.ty.dtype)))

    def _differences(self, wanted: _Wanted) -> Expr:
        """0 for what is furthest, negative for the rest."""
        x = self.visit_expr(wanted.operand)
        found = self._view.call(wanted.operand, "relax.dequantize")
        assert found is not None
        reduce = relax.op.min if wanted.smallest else relax.op.max
        dtype = "uint8" if wanted.data.unsigned else "int8"
        furthest = self._rounded(reduce(x, wanted.axis, keepdims=True), found.args[1], found.args[2], dtype)[0]
        pair = (furthest, x) if wanted.smallest else (x, furthest)
        return self._rounded(relax.op.subtract(*pair), _number(wanted.data.scale), _byte(127))[0]

    def _place(self, far: Expr, wanted: _Wanted) -> Expr:
        """int32 places of the first zeros of `far`, or of the last."""
        axis, size, rank = wanted.axis, wanted.size, len(wanted.data.shape)
        order = np.arange(size)[::-1] if wanted.last else np.arange(size)
        places = order.reshape([size if each == axis else 1 for each in range(rank)])
        if size <= _PART:
            negated = self._first(far, wanted.data.scale, places, axis)[2]
        else:
            candidates, part, high = self._first(far, wanted.data.scale, places // _PART, axis)
            behind = self._rounded(relax.op.subtract(candidates, part), _number(1.0), _byte(127))[0]
            low = self._first(behind, 1.0, places % _PART, axis)[2]
            negated = self._emit(relax.op.add(self._emit(relax.op.multiply(high, relax.const(_PART, "int32"))), low))
        if wanted.last:
            return self._emit(relax.op.add(negated, relax.const(size - 1, "int32")))
        return self._emit(relax.op.negative(negated))

    def _first(self, far: Expr, step: float, places: Array, axis: int) -> tuple[Expr, Expr, Expr]:
        """Negated places where `far` is 0 and less than any elsewhere; the largest of them, and that as int32."""
        flags = self._rounded(relax.op.multiply(far, _number(_BEYOND / step)), _number(1.0), _byte(0))[0]
        negated = relax.const(-places.astype(np.float32))
        candidates = self._rounded(relax.op.minimum(flags, negated), _number(1.0), _byte(0))[0]
        largest = relax.op.max(candidates, axis, keepdims=True)
        first, integers = self._rounded(largest, _number(1.0), _byte(0))
        return candidates, first, self._emit(relax.op.astype(integers, "int32"))

    def _rounded(self, expr: Expr, scale: Expr, zero: Expr, dtype: str = "int8") -> tuple[Expr, Expr]:
        """dequantize(quantize(expr)), and the integers between."""
        integers = self._emit(relax.op.quantize(self._emit(expr), scale, zero, -1, dtype))
        return self._emit(relax.op.dequantize(integers, scale, zero, -1, "float32")), integers

    def _emit(self, expr: Expr) -> Expr:
        return self.builder_.emit(expr)


def _number(value: float) -> Expr:
    return relax.const(value, "float32")


def _byte(value: int) -> Expr:
    return relax.const(value, "int8")
