"""A Relax block builder that never loses a shape: results of unknown shape are cast to fresh symbolic sizes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import tvm
from tvm import relax, te, tirx
from tvm.relax import op as R

import compiler.passes.fuse.ordered_variables  # noqa: F401  (TVM's sets of sizes)
from compiler.frontends.onnx import dtypes
from compiler.frontends.onnx.node_names import NamingBuilder
from compiler.frontends.onnx.size_checks import Relation, SizeChecks
from compiler.frontends.onnx.symbolic import Arithmetic, Dim, Scalar, expression, is_number, is_simple
from compiler.frontends.onnx.values import Constant, Runtime, Symbolic, tensor_shape
from compiler.passes.canonicalize.spell_sizes import respelled_call
from schedules.annotations import OPAQUE
from schedules.ir.tir import structural_equal
from schedules.ir.tvm_types import Expr

_LONGEST_SIZE = 120  # characters
LARGEST_ELEMENT = 2**62


class Builder:
    """Emits bindings into plain (not dataflow) blocks, which allow control flow anywhere."""

    def __init__(self) -> None:
        self.block_builder = NamingBuilder()
        self.arithmetic = Arithmetic()
        self.checks = SizeChecks()
        self._never_negative: set[str] = set()
        self._names: dict[str, int] = {}
        self._regions: list[int] = [0]
        self._region_count = 0
        self._names_of_sizes: dict[str, Dim] = {}
        self._size_regions: dict[tvm.ir.Expr, int] = {}
        self._size_sources: dict[tvm.ir.Expr, frozenset[str]] = {}
        self.sources: frozenset[str] = frozenset()

    @contextmanager
    def sizes_scope(self) -> Iterator[None]:
        """Context whose new sizes cannot be used after it."""
        self._region_count += 1
        self._regions.append(self._region_count)
        try:
            yield
        finally:
            self._regions.pop()

    @contextmanager
    def region(self) -> Iterator[list[relax.BindingBlock]]:
        """Context for a separate block (a branch, a loop's body); the list contains it after the region."""
        blocks: list[relax.BindingBlock] = []
        with self.sizes_scope():
            self.block_builder._begin_binding_block()
            try:
                yield blocks
            finally:
                blocks.append(self.block_builder._end_block())

    @property
    def current_region(self) -> int:
        return self._regions[-1]

    def is_visible(self, region: int) -> bool:
        """True if bindings of a region can be used here."""
        return region in self._regions

    def unique_name(self, name: str) -> str:
        """Return `name` as an identifier not returned by an earlier call."""
        base = re.sub(r"\W", "_", name) or "value"
        base = f"_{base}" if base[0].isdigit() else base
        count = self._names.get(base, 0)
        self._names[base] = count + 1
        return base if count == 0 else self.unique_name(f"{base}_{count}")

    def dimension(self, name: str = "size", maximum: int = 2**40) -> tvm.ir.Expr:
        """Return a new symbolic size, below `maximum`."""
        size = self.arithmetic.dimension(self.unique_name(name), maximum)
        self._size_regions[size] = self.current_region
        self._size_sources[size] = self.sources
        return size

    def sources_of_size(self, size: Dim) -> frozenset[str] | None:
        """Return the model inputs whose values determine the size; None if it (also) depends on a dynamic shape."""
        if is_number(size):
            return frozenset()
        found = [self._size_sources.get(v, frozenset()) for v in tirx.analysis.undefined_vars(size)]
        return frozenset().union(*found) if all(found) else None

    def size_is_visible(self, size: Dim) -> bool:
        """True if a size is computed only from sizes that can be used here."""
        if is_number(size):
            return True
        used = tirx.analysis.undefined_vars(size)
        return all(self.is_visible(self._size_regions.get(variable, 0)) for variable in used)

    def emit(self, expr: relax.Expr) -> relax.Expr:
        """Bind an expression; the result's shape is known (each field's, for a tuple).

        No operator computes an empty tensor: many of TVM's divide by a size or confuse 0 with another size.
        """
        if isinstance(expr, (tvm.ir.Var, tvm.ir.GenericConst)):
            return expr
        call = self._with_plain_sizes(expr)
        if isinstance(call, relax.Call) and _is_empty(call):
            call = R.zeros(call.ty.shape, call.ty.dtype)
        variable = self.block_builder.emit(call)
        if isinstance(variable.ty, relax.TensorType) and not has_shape(variable):
            fresh = [self.dimension() for _ in range(variable.ty.ndim)]
            return self.match_shape(variable, fresh)
        self._require_sizes(variable)
        return variable

    def reshape(self, tensor: relax.Expr, shape: Sequence[Dim]) -> relax.Expr:
        """Reshape a tensor to a shape with as many elements, one of whose sizes may be -1."""
        sizes = relax.ShapeExpr([expression(size) for size in shape])
        if any(is_number(size) and size == 0 for size in shape):
            # In TVM's reshape, a 0 copies the old size of that axis.
            return self.emit(R.zeros(sizes, tensor.ty.dtype))
        return self.emit(R.reshape(tensor, sizes))

    def _with_plain_sizes(self, expr: relax.Expr) -> relax.Expr:
        """Return an operator call with one spelling of each inferred size (n + 200 + 112 as n + 312), so that TVM's
        type inference recognizes equal sizes, and sizes do not grow from layer to layer."""
        if not isinstance(expr, relax.Call) or not isinstance(expr.op, tvm.ir.Op):
            return expr
        call = self.block_builder.normalize(expr)
        if not isinstance(call, relax.Call):
            return call
        ty = self._with_plain_type(call.ty)
        if ty is call.ty:
            return call
        if expr.op.name != "relax.call_tir":
            return relax.Call(call.op, call.args, call.attrs, call.ty_args, call.span, ret_ty=ty)
        typed = relax.Call(call.op, call.args, call.attrs, [ty], call.span)
        return respelled_call(self.block_builder, self.block_builder.get()[call.args[0]], typed, {})

    def _with_plain_type(self, ty: relax.Type) -> relax.Type:
        """Return the type of one or several tensors with one spelling of each size; the same object if unchanged."""
        if isinstance(ty, relax.TupleType):
            fields = [self._with_plain_type(field) for field in ty.fields]
            return (
                ty if all(new is old for new, old in zip(fields, ty.fields, strict=True)) else relax.TupleType(fields)
            )
        if not isinstance(ty, relax.TensorType) or not isinstance(ty.shape, relax.ShapeExpr):
            return ty
        sizes = list(ty.shape.values)
        plain = [self.arithmetic.simplify(size) for size in sizes]
        if all(structural_equal(size, expression(new)) for size, new in zip(sizes, plain, strict=True)):
            return ty
        return relax.TensorType(plain, ty.dtype, ty.vdevice)

    def _require_sizes(self, variable: relax.Expr) -> None:
        """Check that no size of a tensor is negative at run time."""
        if not isinstance(variable.ty, relax.TensorType):
            return
        for size in tensor_shape(variable):
            if is_number(size) or isinstance(size, tvm.ir.Var) or (text := str(size)) in self._never_negative:
                continue
            self._never_negative.add(text)
            if not self.arithmetic.not_negative(size) and len(self._regions) == 1:
                self.checks.require(size, "at least", 0)

    def require_range(self, tensor: relax.Expr, least: Dim | None, size: Dim) -> None:
        """Check before a run that a tensor that is an input holds values in [least, size).

        A `least` of None means -size, for indices that count from the end if negative.
        """
        if len(self._regions) == 1:
            self.checks.require_range(tensor, least, size)

    def require(self, left: Dim, relation: Relation, right: Dim) -> None:
        """Check, before or during a run, that the sizes have that relation."""
        arithmetic = self.arithmetic
        holds = arithmetic.equal(left, right)
        if relation == "at least":
            holds = arithmetic.less_equal(right, left)
        elif relation == "broadcast":
            for size in (left, right):
                holds = arithmetic.logical_or(holds, arithmetic.equal(size, 1))
        if arithmetic.proved(holds):
            return
        if len(self._regions) == 1 and self.checks.require(left, relation, right):
            return
        tensor = self.scalars_to_tensor([arithmetic.select(holds, expression(1), expression(0))], (1,), "int64")
        shape = self.block_builder.emit(R.tensor_to_shape(tensor))
        limit = f" {right}" if is_number(right) else ""
        name = self.checks.next_name(f"a relation of sizes does not hold: {relation}{limit}")
        self.block_builder.match_cast(shape, relax.ShapeType([1]), name)

    def match_shape(self, tensor: relax.Expr, shape: Sequence[Dim]) -> relax.Expr:
        """Return the same tensor with `shape`, checked at run time; new symbolic sizes are defined by it.

        The old shape is dropped first: TVM would substitute its sizes for some of the new names.
        """
        if has_shape(tensor):
            for old, new in zip(tensor_shape(tensor), shape, strict=True):
                if len(self._regions) == 1 and not self.arithmetic.equal_is_proved(old, new):
                    self.checks.require(old, "equal", new)
            unknown = relax.TensorType(dtype=tensor.ty.dtype, ndim=len(shape))
            tensor = self.block_builder.match_cast(tensor, unknown, self.checks.next_name())
        wanted = relax.TensorType(list(shape), tensor.ty.dtype)
        return self.block_builder.match_cast(tensor, wanted, self.checks.next_name())

    def with_simple_sizes(self, tensor: relax.Expr) -> relax.Expr:
        """Name sizes that contain a minimum, a maximum or a selection, to keep later sizes simple."""
        return self._with_names_unless(is_simple, tensor)

    def with_short_sizes(self, tensor: relax.Expr) -> relax.Expr:
        """Name sizes that are long expressions: if each layer's size contains the previous one's several times (windows
        that round up), they would grow exponentially."""
        return self._with_names_unless(_is_short, tensor) if isinstance(tensor.ty, relax.TensorType) else tensor

    def _with_names_unless(self, keeps: Callable[[Dim], bool], tensor: relax.Expr) -> relax.Expr:
        shape = tensor_shape(tensor)
        if all(keeps(size) for size in shape):
            return tensor
        return self.match_shape(tensor, [size if keeps(size) else self._named(size) for size in shape])

    def _named(self, size: Dim) -> Dim:
        """Return a name for a size; equal sizes have the same name."""
        key = str(self.arithmetic.simplify(size))
        name = self._names_of_sizes.get(key)
        if name is None or not self.size_is_visible(name):
            name = self._names_of_sizes[key] = self.dimension()
        return name

    def emit_te(self, function: Callable[..., Any], *args: object, **kwargs: object) -> relax.Expr:
        """Bind a call of a tensor expression function, which receives relax tensors as te tensors."""
        if not any(isinstance(each, tvm.ir.Expr) and isinstance(each.ty, relax.TensorType) for each in args):
            # TVM cannot fuse kernels of only sizes with others that depend on more sizes.
            kwargs = {**kwargs, "primfunc_attrs": {"op_pattern": OPAQUE}}
        return self.emit(self.block_builder.call_te(function, *args, **kwargs))

    def shape_values(self, tensor: relax.Expr, signed: bool) -> list[Dim]:
        """Return the elements of an integer tensor of known length as sizes that are read at run time.

        TVM assumes that symbolic sizes are non-negative, so an element that may be negative is the difference of two:
        its positive and its negative part.
        """
        count = int(np.prod(tensor_shape(tensor), dtype=np.int64))
        if str(tensor.ty.dtype) != "int64":
            tensor = self.emit(R.astype(tensor, "int64"))
        if tensor.ty.ndim != 1:
            tensor = self.reshape(tensor, (count,))
        positive = self._read_sizes(self._clamped(tensor), count)
        if not signed:
            return positive
        negative = self._read_sizes(self._clamped(self.emit(R.negative(tensor))), count)
        return [p - n for p, n in zip(positive, negative, strict=True)]

    def truncated_size(self, value: Scalar) -> Dim:
        """Truncate a float scalar to a size: by integer arithmetic if exact, otherwise in a kernel.

        TVM's passes cannot infer the type of `floor` and `ceil` in a shape.
        """
        exact = self.arithmetic.truncated(value)
        if exact is not None:
            return exact
        key = f"truncated {value}"
        known = self._names_of_sizes.get(key)
        if known is not None and self.size_is_visible(known):
            return known
        outer_sources, self.sources = self.sources, self.sources_of_size(value) or frozenset()
        tensor = self.scalars_to_tensor([tirx.Cast("int64", value)], (1,), "int64")
        (size,) = self.shape_values(tensor, signed=not self.arithmetic.float_not_negative(value))
        self._names_of_sizes[key], self.sources = size, outer_sources
        return size

    def _clamped(self, tensor: relax.Expr) -> relax.Expr:
        """Clamp elements to [0, 2**62), so that sums of a few of them do not overflow."""
        low, high = (relax.const(np.array(limit, np.int64), "int64") for limit in (0, LARGEST_ELEMENT - 1))
        return self.emit(R.minimum(self.emit(R.maximum(tensor, low)), high))

    def _read_sizes(self, tensor: relax.Expr, count: int) -> list[Dim]:
        sizes = [self.dimension("element", LARGEST_ELEMENT) for _ in range(count)]
        shape = self.block_builder.emit(R.tensor_to_shape(tensor))
        self.block_builder.match_cast(shape, relax.ShapeType(sizes), self.checks.next_name())
        return sizes

    def materialize(self, value: Constant | Symbolic | Runtime) -> relax.Expr:
        """Return the Relax expression of a value."""
        if isinstance(value, Constant):
            return value.expr()
        if isinstance(value, Runtime):
            return value.expr
        return self.scalars_to_tensor(value.array.reshape(-1).tolist(), value.shape, value.dtype)

    def scalars_to_tensor(self, scalars: list[Scalar], shape: tuple[int, ...], dtype: str) -> relax.Expr:
        """Return a tensor with the given scalars as elements, in row-major order."""
        carrier = dtypes.carrier(dtype)
        if all(is_number(s) for s in scalars):
            return Constant(np.array(scalars, dtypes.numpy_dtype(dtype)).reshape(shape), dtype).expr()

        def elements(*values: Expr) -> te.Tensor:
            def element(*indices: Expr) -> Expr:
                flat: Expr = tirx.const(0, "int64")
                for index, extent in zip(indices, shape, strict=True):
                    flat = flat * extent + index
                result = values[-1].astype(carrier)
                for position in range(len(values) - 2, -1, -1):
                    result = tirx.Select(
                        tirx.EQ(flat, tirx.const(position, "int64")), values[position].astype(carrier), result
                    )
                return result

            return te.compute(shape, element, name="elements")

        return self.emit_te(elements, *(expression(s) for s in scalars), primfunc_name_hint="shape_elements")


def _is_short(size: Dim) -> bool:
    return is_number(size) or isinstance(size, tvm.ir.Var) or len(str(size)) <= _LONGEST_SIZE


def _is_empty(call: relax.Call) -> bool:
    return has_shape(call) and any(isinstance(size, tirx.IntImm) and size.value == 0 for size in call.ty.shape.values)


def has_shape(tensor: relax.Expr) -> bool:
    """True if the expression's type includes its shape."""
    return isinstance(tensor.ty, relax.TensorType) and isinstance(tensor.ty.shape, relax.ShapeExpr)
