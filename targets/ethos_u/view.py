"""Queries about the surrounding graph."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax
from tvm.ir import GenericConst

from schedules.ir.tvm_types import Call, Expr, Function, Var
from targets.ethos_u.steps import Array, Quantized, Unsupported

_BYTES = ("int8", "uint8")


@dataclass(frozen=True)
class Weight:
    """Constant int8 weights with zero point 0; `scale` has one entry, or one per position along `axis`."""

    values: Array
    scale: Array
    axis: int


class View:
    """The outermost bindings of `main`; `home` is the dataflow block that quantizes most."""

    def __init__(self, mod: tvm.IRModule) -> None:
        self.mod = mod
        function = mod["main"]
        self.results = function.body.body
        self.parameters = set(function.params)
        self.home = _home(function)
        self.bindings = [
            (binding.var, binding.value)
            for block in function.body.blocks
            for binding in block.bindings
            if isinstance(binding, relax.VarBinding)
        ]
        self._definitions = dict(self.bindings)
        self._uses: dict[Var, int] = {}
        for _, value in self.bindings:
            for variable in variables(value):
                self._uses[variable] = self._uses.get(variable, 0) + 1
        for variable in variables(function.body.body):
            self._uses[variable] = self._uses.get(variable, 0) + 1

    def definition(self, expr: Expr) -> Expr:
        """Definition of a variable, or the expression itself."""
        while isinstance(expr, relax.Var) and expr in self._definitions:
            expr = self._definitions[expr]
        return expr

    def call(self, expr: Expr, *names: str) -> Expr | None:
        """The call of one of the given operators that defines `expr`."""
        value = self.definition(expr)
        return value if operator_name(value) in names else None

    def used_once(self, expr: Expr) -> bool:
        """True if there is no other reader."""
        return self._uses.get(expr, 0) <= 1

    def constant(self, expr: Expr) -> Array | None:
        """The value of a constant."""
        value = self.definition(expr)
        return value.value.numpy() if isinstance(value, GenericConst) else None

    def number(self, expr: Expr) -> Array | None:
        """The numbers of a float constant, or of one stored as integers and a scale; float64."""
        plain = self.constant(expr)
        if plain is not None:
            return plain.astype(np.float64)
        dequantize = self.call(expr, "relax.dequantize")
        values = None if dequantize is None else self.constant(dequantize.args[0])
        if dequantize is None or values is None:
            return None
        scale, zero = self.constant(dequantize.args[1]), self.constant(dequantize.args[2])
        if scale is None or zero is None:
            return None
        shape = [1] * values.ndim
        if values.ndim:
            shape[int(dequantize.attrs.axis) % values.ndim] = -1
        shifted = values.astype(np.float64) - zero.astype(np.float64).reshape(shape if zero.size > 1 else ())
        return np.asarray(shifted * scale.astype(np.float64).reshape(shape if scale.size > 1 else ()))

    def quantized(self, expr: Expr) -> Quantized:
        """The 8-bit tensor whose dequantization is a float operand. Raises Unsupported if it is not one, or does not
        have a single scale."""
        dequantize = self.call(expr, "relax.dequantize")
        if dequantize is None or isinstance(self.definition(dequantize.args[0]), GenericConst):
            raise Unsupported("its operand is not a quantized tensor")
        return self.described(dequantize.args[0], dequantize)

    def described(self, variable: Var, call: Call) -> Quantized:
        """An 8-bit tensor with the parameters of a quantize or dequantize call."""
        scale, zero = self.constant(call.args[1]), self.constant(call.args[2])
        dtype = str(variable.ty.dtype)
        if scale is None or zero is None or scale.size != 1 or zero.size != 1:
            raise Unsupported("its activations have a scale for each channel, or one that is not a constant")
        if dtype not in _BYTES:
            raise Unsupported(f"its activations are {dtype}, and the accelerator takes int8 and uint8")
        unsigned = dtype == "uint8"
        offset = 128 if unsigned else 0
        return Quantized(variable, static_shape(variable), float(scale.item()), int(zero.item()) - offset, unsigned)

    def weight(self, expr: Expr, filters: int) -> Weight:
        """Constant weights, with filters along that axis; also transposed ones, like Gemm's with transB."""
        turned = self.call(expr, "relax.permute_dims")
        dequantize = self.call(expr if turned is None else turned.args[0], "relax.dequantize")
        values = None if dequantize is None else self.constant(dequantize.args[0])
        if dequantize is None or values is None:
            raise Unsupported("its weights are not quantized constants")
        scale, zero = self.constant(dequantize.args[1]), self.constant(dequantize.args[2])
        axis = int(dequantize.attrs.axis) % values.ndim
        if turned is not None:
            order = _order(turned)
            values, axis = values.transpose(order), order.index(axis)
        if scale is None or zero is None or (scale.size > 1 and axis != filters):
            raise Unsupported("the scales of its weights are not per filter")
        shape = [1] * values.ndim
        shape[axis] = -1
        shifted = values.astype(np.int32) - zero.astype(np.int32).reshape(shape if zero.size > 1 else ())
        if shifted.min(initial=0) < -128 or shifted.max(initial=0) > 127:
            raise Unsupported("its weights do not fit int8 with the zero point 0")
        return Weight(shifted.astype(np.int8), scale.reshape(-1).astype(np.float64), filters)


def _order(turned: Expr) -> list[int]:
    """The axes of a permute_dims."""
    rank = int(turned.args[0].ty.ndim)
    given = turned.attrs.axes
    return list(reversed(range(rank))) if given is None else [int(axis) % rank for axis in given]


def _home(function: Function) -> set[Expr]:
    """The variables of the dataflow block with the most quantization: a segment must be within one block."""
    best: list[Expr] = []
    for block in function.body.blocks:
        if isinstance(block, relax.DataflowBlock):
            bound = [each.var for each in block.bindings if isinstance(each, relax.VarBinding)]
            quantized = sum(operator_name(each.value) == "relax.quantize" for each in block.bindings)
            best = max(best, [quantized, bound], key=lambda each: each[0] if each else -1)
    return set(best[1]) if best else set()


def operator_name(expr: Expr) -> str | None:
    """The name of the operator that `expr` calls."""
    if isinstance(expr, relax.Call) and isinstance(expr.op, tvm.ir.Op):
        return str(expr.op.name)
    return None


def registered_name(expr: Expr) -> str:
    """The name under which a step for `expr` is registered: its operator's or kernel's."""
    name = operator_name(expr)
    if name == "relax.call_tir":
        return "kernel." + str(expr.args[0].name_hint).rstrip("0123456789")
    return name or ""


def static_shape(expr: Expr) -> tuple[int, ...]:
    """The sizes of a tensor. Raises Unsupported if one is dynamic."""
    shape = getattr(expr.ty, "shape", None)
    if not isinstance(shape, relax.ShapeExpr) or not all(isinstance(size, tvm.tirx.IntImm) for size in shape.values):
        raise Unsupported("its sizes are dynamic, and a command stream needs fixed sizes")
    sizes = tuple(int(size) for size in shape.values)
    if 0 in sizes:
        raise Unsupported("it has no elements")
    return sizes


def variables(expr: Expr) -> Iterable[Var]:
    """The variables that an expression reads, repeated for each use."""
    if isinstance(expr, relax.Var):
        yield expr
    elif isinstance(expr, relax.Call):
        for argument in expr.args:
            yield from variables(argument)
    elif isinstance(expr, relax.Tuple):
        for field in expr.fields:
            yield from variables(field)
    elif isinstance(expr, relax.TupleGetItem):
        yield from variables(expr.tuple_value)
    elif isinstance(expr, relax.SeqExpr | relax.If | relax.Function):
        yield from relax.analysis.free_vars(expr)
