"""Converts a loop body to steps: calls of kernels, copies and branches on tensors whose sizes do not change in the
loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import tvm
from tvm import relax, tirx
from tvm.ir import GenericConst, GlobalVar, IRModule
from tvm_ffi import structural_equal

from compiler.passes.rewriting.graph import operator_name
from schedules.annotations import LOOP
from schedules.ir.expression import substitute
from schedules.ir.tvm_types import Binding, Call, Expr, Function, SeqExpr, Type, Var
from schedules.machine import dtype_bits


class NotCompiledError(Exception):
    """The body does something other than calling kernels on tensors of fixed sizes; the loop is left unchanged."""


@dataclass(eq=False)
class Tensor:
    """A tensor of a step: an input of the loop (`given`), or written by a step."""

    shape: list[Expr]
    dtype: str
    given: Expr | None = None


@dataclass(frozen=True)
class View:
    """A tensor with the shape in which it is read."""

    tensor: Tensor
    shape: tuple[Expr, ...]


Value: TypeAlias = "View | list[Value] | tuple[Expr, ...]"
"""A tensor, a tuple of values (a list), or sizes (a tuple)."""


@dataclass(frozen=True)
class KernelCall:
    """A call of a kernel by name; operands that are not tensors are sizes."""

    name: str
    operands: list[View | Expr]
    results: list[Tensor]


@dataclass(frozen=True)
class Copy:
    """Copy a tensor to another of the same size."""

    source: Tensor
    result: Tensor


@dataclass(frozen=True)
class Branch:
    """Steps to run if a condition, a tensor of one bool, is true, and others if it is false."""

    condition: Tensor
    steps: tuple[list[Step], list[Step]]


Step: TypeAlias = KernelCall | Copy | Branch


@dataclass
class StepReader:
    """Converts calls of functions to steps.

    Attributes:
        mod: the module of the functions, after schedules were applied.
        steps: the steps so far.
        constants: the constants that steps read.
    """

    mod: IRModule
    steps: list[Step] = field(default_factory=list)
    constants: list[tuple[GenericConst, Tensor]] = field(default_factory=list)

    def call(self, function: Function, arguments: Sequence[Value]) -> Value:
        """The result of a call. Raises NotCompiledError."""
        return _FunctionReader(self, function, arguments).value_of(function.body)

    def constant(self, constant: GenericConst) -> View:
        """The loop input for a constant; the same one for repeated uses."""
        known = next((tensor for each, tensor in self.constants if each.same_as(constant)), None)
        if known is None:
            known = tensor_of(constant.ty, {}, given=constant)
            self.constants.append((constant, known))
        return View(known, tuple(known.shape))


def tensor_of(ty: Type, sizes: dict[Var, Expr], given: Expr | None = None) -> Tensor:
    """A tensor of a Relax type, with sizes substituted. Raises NotCompiledError if its shape is unknown."""
    if not isinstance(ty, relax.TensorType) or ty.shape is None or not isinstance(ty.shape, relax.ShapeExpr):
        raise NotCompiledError("a tensor of unknown shape")
    dtype = str(ty.dtype)
    if dtype != "bool" and dtype_bits(dtype) % 8:
        raise NotCompiledError(f"elements of {dtype}")
    return Tensor([substitute(size, sizes) for size in ty.shape.values], dtype, given)


class _FunctionReader:
    """One call of a function: `sizes` and `values` are those of its variables."""

    def __init__(self, reader: StepReader, function: Function, arguments: Sequence[Value]) -> None:
        self._reader = reader
        self._sizes: dict[Var, Expr] = {}
        self._values: dict[Var, Value] = {}
        if len(arguments) != len(function.params):
            raise NotCompiledError("a function is called with other arguments than it has")
        for parameter, value in zip(function.params, arguments, strict=True):
            self._values[parameter] = value
            if isinstance(value, View):
                self._bind_sizes(parameter.ty, value.shape)
            elif isinstance(value, tuple):
                self._bind_sizes(parameter.ty, value)

    def _bind_sizes(self, ty: Type, given: Sequence[Expr]) -> None:
        """Bind the sizes that a type names to those of its value; sizes that are already bound must match."""
        named = ty.values if isinstance(ty, relax.ShapeType) else getattr(ty, "shape", None)
        if named is None or len(named) != len(given):
            raise NotCompiledError("a shape that is not known")
        for size, value in zip(named, given, strict=True):
            if isinstance(size, tirx.Var) and size not in self._sizes:
                self._sizes[size] = value
            elif not structural_equal(substitute(size, self._sizes), value):
                raise NotCompiledError("a size that is checked while the loop runs")

    def value_of(self, expr: Expr) -> Value:
        """The value of an expression."""
        if isinstance(expr, relax.SeqExpr):
            return self._sequence(expr)
        if isinstance(expr, relax.Var):
            return self._values[expr]
        if isinstance(expr, GenericConst):
            return self._reader.constant(expr)
        if isinstance(expr, relax.Tuple):
            return [self.value_of(each) for each in expr.fields]
        if isinstance(expr, relax.TupleGetItem):
            items = self.value_of(expr.tuple_value)
            assert isinstance(items, list)
            return items[expr.index]
        if isinstance(expr, relax.ShapeExpr):
            return tuple(substitute(size, self._sizes) for size in expr.values)
        if isinstance(expr, relax.If):
            return self._branch(expr)
        if isinstance(expr, relax.Call):
            return self._call(expr)
        raise NotCompiledError(f"a {type(expr).__name__}")

    def _sequence(self, sequence: SeqExpr) -> Value:
        for block in sequence.blocks:
            for binding in block.bindings:
                self._values[binding.var] = self._bound(binding)
        return self.value_of(sequence.body)

    def _bound(self, binding: Binding) -> Value:
        value = self.value_of(binding.value)
        if isinstance(binding, relax.MatchCast):
            if not isinstance(value, View):
                raise NotCompiledError("a size that a kernel computes")
            self._bind_sizes(binding.ty, value.shape)
        return value

    def _call(self, call: Call) -> Value:
        if isinstance(call.op, GlobalVar):
            callee = self._reader.mod[call.op]
            if not isinstance(callee, relax.Function) or LOOP in (callee.attrs or {}):
                raise NotCompiledError(f"a call of {call.op.name_hint}")
            return self._reader.call(callee, [self.value_of(each) for each in call.args])
        name = operator_name(call)
        if name == "relax.reshape":
            operand = self.value_of(call.args[0])
            shape = tensor_of(call.ty, self._sizes).shape
            assert isinstance(operand, View)
            return View(operand.tensor, tuple(shape))
        if name != "relax.call_tir" or not isinstance(call.args[0], GlobalVar):
            raise NotCompiledError(f"a call of {name}")
        return self._kernel(call)

    def _kernel(self, call: Call) -> Value:
        operands: list[View | Expr] = []
        fields = call.args[1].fields if isinstance(call.args[1], relax.Tuple) else None
        for each in fields or ():
            value = substitute(each, self._sizes) if isinstance(each.ty, tvm.ir.PrimType) else self.value_of(each)
            if isinstance(value, list | tuple):
                raise NotCompiledError("a kernel of something else than tensors")
            operands.append(value)
        if fields is None or len(call.args) > 2:
            raise NotCompiledError("a kernel whose operands are not known")
        ty = call.ty_args[0]
        types = list(ty.fields) if isinstance(ty, relax.TupleType) else [ty]
        results = [tensor_of(each, self._sizes) for each in types]
        self._reader.steps.append(KernelCall(str(call.args[0].name_hint), operands, results))
        whole: list[Value] = [View(each, tuple(each.shape)) for each in results]
        return whole if isinstance(ty, relax.TupleType) else whole[0]

    def _branch(self, choice: relax.If) -> Value:
        condition = self.value_of(choice.cond)
        assert isinstance(condition, View)
        outer, sides, found = self._reader.steps, [], []
        for branch in (choice.true_branch, choice.false_branch):
            self._reader.steps = []
            found.append(self.value_of(branch))
            sides.append(self._reader.steps)
        self._reader.steps = outer
        joined = _joined(found[0], found[1], sides)
        outer.append(Branch(condition.tensor, (sides[0], sides[1])))
        return joined


def _joined(left: Value, right: Value, sides: Sequence[list[Step]]) -> Value:
    """Merge the results of both sides of a branch, by copies to common tensors at the end of each."""
    if isinstance(left, list) and isinstance(right, list):
        return [_joined(a, b, sides) for a, b in zip(left, right, strict=True)]
    if not isinstance(left, View) or not isinstance(right, View) or left.tensor.dtype != right.tensor.dtype:
        raise NotCompiledError("branches that give different kinds of values")
    if not structural_equal(list(left.shape), list(right.shape)):
        raise NotCompiledError("branches that give tensors of different shapes")
    result = Tensor(list(left.shape), left.tensor.dtype)
    for view, steps in zip((left, right), sides, strict=True):
        steps.append(Copy(view.tensor, result))
    return View(result, left.shape)
