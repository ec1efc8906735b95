"""Rebuilds a module without the removed units: constants are sliced, and attributes with sizes are updated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax, te, tirx
from tvm.ir import GenericConst, IRModule

from compiler.compression.pruning.axes import Axis, Value, is_axes, slice_bounds
from compiler.compression.pruning.dependencies import Dependencies, is_clip
from compiler.errors import InternalError
from compiler.passes.rewriting.graph import Call, Expr, Var, operator_name, remove_unused
from compiler.passes.rewriting.matching import array_of, as_constant, shape_of

Removed = NDArray[np.bool_]  # for each unit, whether it is removed; [0] is False


def shrink(found: Dependencies, removed: Removed) -> IRModule:
    """The module of `found` without the units marked in `removed`. `removed`: bool, one per unit of `found.units`;
    entry 0 represents everything that cannot be pruned."""
    if not removed.any():
        return found.mod
    mod = found.mod.clone()
    main = mod["main"]
    builder = relax.BlockBuilder(mod)
    work = _Shrinking(found, removed, builder)
    blocks = []
    for block in main.body.blocks:
        is_dataflow = isinstance(block, relax.DataflowBlock)
        work.bindings = []
        work.kind = relax.DataflowVar if is_dataflow else relax.Var
        for binding in block.bindings:
            work.rebind(binding)
        blocks.append((relax.DataflowBlock if is_dataflow else relax.BindingBlock)(work.bindings))
    body = relax.SeqExpr(blocks, work.new(main.body.body))
    mod = builder.get()
    mod.update_func(
        mod.get_global_var("main"), relax.Function(main.params, body, main.ret_ty, main.is_pure, main.attrs)
    )
    return remove_unused(relax.transform.Normalize()(mod))


def cut(found: Dependencies, removed: Removed, constant: GenericConst) -> Any:
    """The constant without the removed positions."""
    array = array_of(constant)
    for index, axis in enumerate(found.constants.get(constant, ())):
        keep = kept(found, removed, axis)
        if keep is not None and not keep.all():
            array = np.compress(keep, array, axis=index)
    return array


def kept(found: Dependencies, removed: Removed, axis: Axis) -> NDArray[np.bool_] | None:
    """Mask of the kept positions of an axis; None if all are."""
    units = found.unit_axis(axis)
    return None if units is None else ~removed[units]


class _Shrinking:
    """Rewrites variables and constants in order."""

    def __init__(self, found: Dependencies, removed: Removed, builder: Any) -> None:
        self.found, self.removed, self.builder = found, removed, builder
        self.variables: dict[Var, Var] = {}
        self.constants: dict[GenericConst, Expr] = {}
        self.bindings: list[Any] = []
        self.kind: Any = relax.Var

    def rebind(self, binding: Any) -> None:
        if isinstance(binding, relax.MatchCast):
            self.bindings.append(relax.MatchCast(binding.var, self.new(binding.value), binding.ty))
            return
        value = self.builder.normalize(self.value(binding.var, binding.value))
        self._check(binding.var, value)
        self.variables[binding.var] = type(binding.var)(binding.var.name, value.ty)
        self.bindings.append(relax.VarBinding(self.variables[binding.var], value))

    def value(self, variable: Var, value: Expr) -> Expr:
        if isinstance(value, relax.Call):
            arguments = [self.new(argument) for argument in value.args]
            if is_clip(value):
                return self.clip(value, list(arguments[1].fields))
            rewrite = _REWRITES.get(operator_name(value) or "")
            if rewrite is not None:
                return rewrite(self, variable, value, arguments)
            same = all(new is old for new, old in zip(arguments, value.args, strict=True))
            return value if same else relax.Call(value.op, arguments, value.attrs, value.ty_args)
        if isinstance(value, relax.TupleGetItem):
            return relax.TupleGetItem(self.new(value.tuple_value), value.index)
        if isinstance(value, relax.Var | GenericConst | relax.Tuple):
            return self.new(value)
        return _substituted(value, self.variables)

    def new(self, expr: Expr) -> Expr:
        if isinstance(expr, relax.Var):
            return self.variables.get(expr, expr)
        if isinstance(expr, GenericConst):
            if expr not in self.constants:
                array = cut(self.found, self.removed, expr)
                same = array.shape == tuple(shape_of(expr) or ())
                self.constants[expr] = expr if same else as_constant(array)
            return self.constants[expr]
        if isinstance(expr, relax.Tuple):
            fields = list(expr.fields)
            new = [self.new(field) for field in fields]
            same = all(after is before for after, before in zip(new, fields, strict=True))
            return expr if same else self.builder.normalize(relax.Tuple(new))
        return expr

    def sizes(self, value: Value, shape: Sequence[object]) -> list[Any]:
        """The new sizes of a tensor."""
        keeps = [kept(self.found, self.removed, axis) for axis in value]
        return [size if keep is None else int(keep.sum()) for keep, size in zip(keeps, shape, strict=True)]

    def clip(self, call: Call, operands: list[Expr]) -> Expr:
        body = self.builder.get()[call.args[0]].script()
        low, high = "T.max(" in body, "T.min(" in body

        def limited(data: Any, *limits: Any) -> Any:
            def element(*indices: Any) -> Any:
                value = result = data(*indices)
                if low:
                    result = tirx.max(result, limits[0]())
                if high:
                    result = tirx.min(result, limits[-1]())
                return tirx.Select(tirx.isnan(value), value, result) if "isnan" in body else result

            return te.compute(data.shape, element, name="clip")

        return self.builder.call_te(limited, *operands, primfunc_name_hint="clip")

    def _check(self, variable: Var, value: Expr) -> None:
        expected = self.found.values.get(variable)
        if not is_axes(expected) or (shape := shape_of(variable)) is None:
            return
        sizes, got = self.sizes(expected, shape), shape_of(value)
        if got is None or any(
            isinstance(a, int) and isinstance(b, int) and a != b for a, b in zip(got, sizes, strict=True)
        ):
            raise InternalError(f"removing channels: {operator_name(value)} became {got}, expected {sizes}")


def _substituted(expr: Expr, variables: dict[Var, Var]) -> Expr:
    """A branch with the variables around it replaced; their types are unchanged."""

    @relax.expr_functor.mutator
    class Replace(relax.PyExprMutator):
        def visit_var_(self, var: object) -> Any:
            return variables.get(var, var)

        visit_dataflow_var_ = visit_var_

    return Replace().visit_expr(expr)


Rewrite = Callable[[_Shrinking, Var, Call, list[Expr]], Expr]


def _convolution(work: _Shrinking, variable: Var, call: Call, arguments: list[Expr]) -> Expr:
    groups = int(call.attrs.groups)
    data, weight = (work.builder.normalize(each) for each in arguments)
    if groups > 1:
        groups = int(shape_of(data)[1]) // int(shape_of(weight)[1])  # type: ignore[index]
    rank = int(call.ty.ndim) - 2
    make = getattr(relax.op.nn, f"conv{rank}d")
    attrs = call.attrs
    return make(
        data,
        weight,
        strides=[int(each) for each in attrs.strides],
        padding=[int(each) for each in attrs.padding],
        dilation=[int(each) for each in attrs.dilation],
        groups=groups,
        data_layout=attrs.data_layout,
        kernel_layout=attrs.kernel_layout,
        out_layout=attrs.out_layout,
        out_dtype=attrs.out_dtype,
    )


def _reshape(work: _Shrinking, variable: Var, call: Call, arguments: list[Expr]) -> Expr:
    shape = shape_of(variable)
    value = work.found.values[variable]
    if shape is None or not is_axes(value):
        return relax.Call(call.op, arguments, call.attrs, call.ty_args)
    make = relax.op.broadcast_to if operator_name(call) == "relax.broadcast_to" else relax.op.reshape
    return make(arguments[0], work.sizes(value, shape))


def _slice(work: _Shrinking, variable: Var, call: Call, arguments: list[Expr]) -> Expr:
    bounds = slice_bounds(call)
    if bounds is None:
        return relax.Call(call.op, arguments, call.attrs, call.ty_args)
    rows = []
    for axis, begin, end in bounds:
        keep = kept(work.found, work.removed, work.found.values[call.args[0]][axis])
        rows.append((axis, begin, end) if keep is None else (axis, int(keep[:begin].sum()), int(keep[:end].sum())))
    axes, begins, ends = (list(column) for column in zip(*rows, strict=True))
    return relax.op.strided_slice(arguments[0], axes, begins, ends, assume_inbound=bool(call.attrs.assume_inbound))


def _split(work: _Shrinking, variable: Var, call: Call, arguments: list[Expr]) -> Expr:
    rank = len(work.found.values[call.args[0]])
    axis = int(call.attrs.axis) % rank
    keep = kept(work.found, work.removed, work.found.values[call.args[0]][axis])
    if keep is None:
        return relax.Call(call.op, arguments, call.attrs, call.ty_args)
    sizes = [
        work.sizes(part, list(field.shape.values))[axis]
        for part, field in zip(work.found.values[variable], call.ty.fields, strict=True)
    ]
    return relax.op.split(arguments[0], [int(each) for each in np.cumsum(sizes)[:-1]], axis)


_REWRITES: dict[str, Rewrite] = {
    **{f"relax.nn.conv{rank}d": _convolution for rank in (1, 2, 3)},
    "relax.reshape": _reshape,
    "relax.broadcast_to": _reshape,
    "relax.strided_slice": _slice,
    "relax.split": _split,
}
