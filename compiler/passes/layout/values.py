"""Values of a function in plain and in blocked form, each made on first use.

Constants are converted between the layouts with numpy at compile time, other tensors by kernels at run time.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray
from tvm import relax
from tvm.ir import GenericConst

import schedules.ir.tir  # noqa: F401
from compiler.passes.rewriting.expansion import Expansions
from compiler.passes.rewriting.graph import Call
from compiler.passes.rewriting.matching import array_of, as_constant, dtype_of, shape_of
from compiler.support.model_nodes import derived_name
from compiler.support.registry import registers_in
from schedules.instructions.dot_products.operation import Operation
from schedules.instructions.rounding import narrowed, rounded_pair, stored_halves
from schedules.ir.expression import number
from schedules.ir.numbers import ceil_div
from schedules.ir.tir import StructuralKey
from schedules.ir.tvm_types import Binding, BlockBuilder, Expr, GlobalVar, Index, IRModule, PrimFunc, Tensor, Var
from schedules.machine import Machine
from schedules.selection.alternatives import Choice

from tvm import te, tirx  # isort: skip

Array = np.ndarray
Order = tuple[int, ...]
# Element types with blocked layouts.
BLOCKABLE = ("float32", "int32", "int16", "uint16", "int8", "uint8")


@dataclass(frozen=True, eq=False)
class Blocked:
    """A tensor in blocked layout: (batch, channel blocks, *spatial, lanes).

    `shape` is the logical shape; `order[i]` is the logical axis of physical axis i: the batch, the channels, then the
    spatial dimensions. The lanes after the last channel are unspecified. `narrow`: the elements are 16-bit floats, as
    in `Operation.stored`.
    """

    expr: Expr
    shape: tuple[Index, ...]
    order: Order
    narrow: bool = False

    @property
    def channels(self) -> int:
        return int(self.shape[self.order[1]])

    @property
    def spatial(self) -> tuple[int, ...]:
        """Spatial sizes, 0 for symbolic ones."""
        return known_sizes([self.shape[axis] for axis in self.order[2:]])

    @property
    def batch(self) -> Index:
        return self.shape[self.order[0]]


@dataclass(eq=False)
class Value:
    """One value of the function; `parts` are a tuple's elements. `narrow` is its blocked form in 16-bit floats."""

    plain: Expr | None = None
    blocked: Blocked | None = None
    narrow: Blocked | None = None
    packed: dict[Order, Blocked] = field(default_factory=dict)
    packed_narrow: dict[Order, Blocked] = field(default_factory=dict)
    parts: list[Value] | None = None


class LayoutBuilder:
    """Emits bindings of a dataflow block and records the forms of its values."""

    def __init__(
        self,
        builder: BlockBuilder,
        mod: IRModule,
        machine: Machine,
        expansions: Expansions,
        *,
        halves: Operation | None = None,
        choose: Choice | None = None,
    ) -> None:
        self.halves = halves
        self.choose = choose
        self.definitions: dict[Var, Expr] = {}
        self.wanted_narrow: set[Var] = set()
        self.kept_plain: set[Var] = set()
        self._widened: dict[Var, Blocked] = {}
        self._builder = builder
        self._mod = mod
        self.machine = machine
        self.expansions = expansions
        self.lanes: int = machine.lanes("float32")
        self.bindings: list[Binding] = []
        self._values: dict[Var, Value] = {}
        self._names = 0
        self._kernel_calls: dict[Hashable, GlobalVar] = {}
        self._root = ""

    # Values.

    def value(self, expr: Expr) -> Value:
        """Return the value of a variable or constant of the old function."""
        found = self._values.get(expr) if isinstance(expr, relax.Var) else None
        return found if found is not None else Value(plain=expr)

    def define(self, variable: Var, value: Value) -> None:
        """Set the value of a variable of the old function."""
        self._values[variable] = value

    def forget_block(self) -> None:
        """Start another block: only plain forms remain valid across blocks."""
        self.bindings = []
        self._values = {}
        self.definitions = {}

    def start_binding(self, variable: Var, value: Expr) -> None:
        """Record the value of a variable of the old function. Upcasts are not shared between bindings: each reader's
        own conversion is fused into its kernel."""
        self.definitions[variable] = value
        self._root = str(variable.name)
        self._widened = {}

    def emit(self, expr: Expr, name: str = "laid_out") -> Expr:
        """Bind an expression to a new variable of the block."""
        value = self._builder.normalize(expr)
        if isinstance(value, relax.Var | GenericConst):
            return value
        self._names += 1
        variable = relax.DataflowVar(derived_name(self._root or name, self._names), value.ty)
        self.bindings.append(relax.VarBinding(variable, value))
        return variable

    def emit_kernel(
        self,
        function: Callable[..., Tensor],
        *arguments: object,
        name: str,
        pattern: int | None = None,
        key: Hashable = None,
    ) -> Expr:
        """Bind the call of a kernel given as a tensor expression.

        Kernels with equal `key`, name, pattern and argument types are created once.
        """
        key_of_call = None if key is None else (key, name, pattern, *(_argument_key(each) for each in arguments))
        known = None if key_of_call is None else self._kernel_calls.get(key_of_call)
        if known is not None:
            tensors = [each for each in arguments if not isinstance(each, list)]
            given = relax.Tuple([*tensors, *known.args[1].fields[len(tensors) :]])  # sizes follow the tensors
            return self.emit(relax.Call(known.op, [known.args[0], given], known.attrs, known.ty_args), name)
        attributes = {} if pattern is None else {"primfunc_attrs": {"op_pattern": pattern}}
        call = self._builder.call_te(function, *arguments, primfunc_name_hint=name, **attributes)
        if key_of_call is not None:
            self._kernel_calls[key_of_call] = call
        return self.emit(call, name)

    def function(self, variable: GlobalVar) -> PrimFunc:
        """Return the kernel that a global variable of the module names."""
        return self._mod[variable]

    # Conversions.

    def plain(self, expr: Expr) -> Expr:
        """Return the plain form of an operand of the old function."""
        return self.plain_value(self.value(expr))

    def plain_value(self, value: Value) -> Expr:
        if value.plain is None and value.parts is not None:
            value.plain = self.emit(relax.Tuple([self.plain_value(part) for part in value.parts]))
        if value.plain is None:
            floats = self._floats(value)
            assert floats is not None
            plain = self._unpack(floats)
            if value.blocked is None:
                return plain  # each reader converts a narrow value itself, in its kernel
            value.plain = plain
        return value.plain

    def _floats(self, value: Value) -> Blocked | None:
        """Return the blocked form as float32, converted from the 16-bit form if there is no other."""
        if value.blocked is not None or value.narrow is None:
            return value.blocked
        narrow = value.narrow
        if narrow.expr not in self._widened:
            wide = self.emit_kernel(widened_tensor, narrow.expr, name="widen")
            self._widened[narrow.expr] = Blocked(wide, narrow.shape, narrow.order)
        return self._widened[narrow.expr]

    def narrow(self, expr: Expr, order: Order) -> Blocked:
        """Return the blocked form of a float operand in 16 bits, converted if there is none."""
        value = self.value(expr)
        if value.narrow is not None and value.narrow.order == order:
            return value.narrow
        if order not in value.packed_narrow:
            value.packed_narrow[order] = self.narrowed(self.as_blocked(expr, order))
            if isinstance(expr, relax.Var):
                self._values.setdefault(expr, value)
        return value.packed_narrow[order]

    def narrowed(self, blocked: Blocked) -> Blocked:
        """Convert blocked floats to 16 bits."""
        assert self.halves is not None
        if isinstance(blocked.expr, GenericConst):
            stored = as_constant(stored_halves(array_of(blocked.expr), self.halves))
        else:
            stored = self.emit_kernel(partial(narrowed_tensor, halves=self.halves), blocked.expr, name="narrow")
        return Blocked(stored, blocked.shape, blocked.order, narrow=True)

    def blocked(self, expr: Expr, order: Order | None = None) -> Blocked | None:
        """Return the existing blocked form of an operand (in `order`, if given), without conversion."""
        value = self.value(expr)
        floats = self._floats(value)
        if floats is not None and (order is None or floats.order == order):
            return floats
        return None if order is None else value.packed.get(order)

    def stored(self, expr: Expr, order: Order | None = None) -> Blocked | None:
        """Like `blocked`, but in 16 bits if the operand is stored so."""
        narrow = self.value(expr).narrow
        if narrow is not None and (order is None or narrow.order == order):
            return narrow
        return self.blocked(expr, order)

    def as_blocked(self, expr: Expr, order: Order) -> Blocked:
        """Return the blocked form of an operand, converted if there is none."""
        blocked = self.blocked(expr, order)
        if blocked is not None:
            return blocked
        value = self.value(expr)
        plain = self.plain(expr)
        shape = shape_of(plain)
        assert shape is not None
        packed = Blocked(self._pack(plain, shape, order), tuple(shape), order)
        value.packed[order] = packed
        if isinstance(expr, relax.Var):
            self._values.setdefault(expr, value)
        return packed

    def _pack(self, plain: Expr, shape: Sequence[Index], order: Order) -> Expr:
        if isinstance(plain, GenericConst):
            return as_constant(pack_channels(array_of(plain).transpose(order), self.lanes))
        channels = shape[order[1]]
        single = all(_same(shape[axis], 1) for axis in order[2:])
        if channels % self.lanes == 0 and single and _rising(order, shape):
            sizes = [shape[order[0]], channels // self.lanes, *(1 for _ in order[2:]), self.lanes]
            return self.emit(relax.op.reshape(plain, sizes), "packed")
        return self.emit_kernel(lambda data: pack_tensor(data, order, self.lanes), plain, name="pack")

    def _unpack(self, blocked: Blocked) -> Expr:
        shape, order = blocked.shape, blocked.order
        whole = blocked.channels % self.lanes == 0
        if whole and all(size == 1 for size in blocked.spatial) and _rising(order, shape):
            return self.emit(relax.op.reshape(blocked.expr, list(shape)), "unpacked")
        return self.emit_kernel(lambda data: unpack_tensor(data, order, blocked.channels), blocked.expr, name="unpack")

    # Broadcasting.

    def broadcast(self, expr: Expr, to: Blocked) -> Expr | None:
        """Broadcast an operand of an elementwise operator whose result is laid out like `to`; None if that requires a
        copy in plain layout anyway."""
        blocked = self.blocked(expr)
        if blocked is not None and blocked.order == to.order and blocked.channels == to.channels:
            return blocked.expr
        shape = shape_of(expr)
        if shape is None or len(shape) > len(to.shape):
            return None
        full = [1] * (len(to.shape) - len(shape)) + list(shape)
        if all(_same(size, 1) for size in full):
            return self._one_element(self.plain(expr), shape, len(to.shape) + 1)
        channels = full[to.order[1]]
        if _same(channels, 1):
            return self._channelless(self.plain(expr), full, to.order)
        if not _same(channels, to.channels):
            return None
        if len(shape) == len(to.shape):
            return self.as_blocked(expr, to.order).expr
        widened = self._reshape(self.plain(expr), full)
        return self._pack(widened, full, to.order)

    def _one_element(self, plain: Expr, shape: Sequence[Index], rank: int) -> Expr:
        if isinstance(plain, GenericConst):
            return as_constant(array_of(plain).reshape(()))  # legalization inlines a scalar into the code
        return self._reshape(plain, [1] * rank) if shape else plain

    def _channelless(self, plain: Expr, full: Sequence[Index], order: Order) -> Expr:
        """Return a one-channel tensor, shared by all lanes: (batch, 1, *spatial, 1)."""
        if isinstance(plain, GenericConst):
            values = array_of(plain).reshape([int(size) for size in full]).transpose(order)
            return as_constant(values[..., np.newaxis])
        moved = self._reshape(plain, full)
        if list(order) != sorted(order):
            moved = self.emit(relax.op.permute_dims(moved, list(order)), "moved")
        return self._reshape(moved, [*(full[axis] for axis in order), 1])

    def _reshape(self, plain: Expr, shape: Sequence[Index]) -> Expr:
        if isinstance(plain, GenericConst):
            return as_constant(array_of(plain).reshape([int(size) for size in shape]))
        return self.emit(relax.op.reshape(plain, list(shape)), "reshaped")


def _argument_key(argument: Expr | list[Index]) -> Hashable:
    """Return a key equal for kernel arguments that lead to the same kernel: tensors of one type, equal sizes."""
    if isinstance(argument, list):
        return tuple(each if isinstance(each, int) else StructuralKey(each) for each in argument)
    return StructuralKey(argument.ty)


def _rising(order: Order, shape: Sequence[Index]) -> bool:
    """True if the axes with more than one element are in their logical order."""
    kept = [axis for axis in order if not _same(shape[axis], 1)]
    return kept == sorted(kept)


def _same(left: Index, right: Index) -> bool:
    return isinstance(left, int) and isinstance(right, int) and left == right


def can_block(expr: Expr, order: Order, dtypes: Sequence[str] = ("float32",)) -> bool:
    """True if a tensor can be laid out in blocks: of one of `dtypes`, with known channels and no size of zero."""
    shape = shape_of(expr)
    if shape is None or dtype_of(expr) not in dtypes or len(shape) != len(order):
        return False
    return isinstance(shape[order[1]], int) and not any(_same(size, 0) for size in shape)


def known_sizes(sizes: Sequence[Index]) -> tuple[int, ...]:
    """Return sizes as in workloads: 0 for symbolic ones."""
    return tuple(size if isinstance(size, int) else 0 for size in sizes)


Answer = Blocked | Value | None
Handler = Callable[[LayoutBuilder, Call], Answer]

HANDLERS: dict[str, Handler] = {}

ANCHORS = frozenset(f"relax.nn.conv{rank}d{kind}" for rank in (1, 2, 3) for kind in ("", "_transpose"))
"""Operators that start a blocked region; a function without one is unchanged."""


NARROW_READERS = frozenset(
    {
        *(f"relax.nn.conv{rank}d" for rank in (1, 2, 3)),
        *(f"relax.nn.{kind}_pool{rank}d" for kind in ("max", "avg") for rank in (1, 2, 3)),
        *(f"relax.nn.adaptive_{kind}_pool{rank}d" for kind in ("max", "avg") for rank in (1, 2, 3)),
        "relax.concat",
    }
)
"""Operators whose handlers read blocked bfloat16 floats directly."""
handles = registers_in(HANDLERS)
"""Registers a handler of operators. It returns the result's blocked form (or a Value), or None to run the operator on
plain operands."""


_COLUMNS = 384  # matmul columns BLAS computes on one thread: on a busy machine, more threads only wait


def pack_channels(values: Array, lanes: int) -> Array:
    """(n, c, *spatial) -> (n, ceil(c / lanes), *spatial, lanes), zeros after the last channel."""
    images, channels = values.shape[:2]
    blocks = ceil_div(channels, lanes)
    padded = _padded(values, {1: blocks * lanes})
    split = padded.reshape(images, blocks, lanes, *values.shape[2:])
    return np.ascontiguousarray(np.moveaxis(split, 2, -1))


def pack_filter(weight: Array, in_lanes: int, lanes: int) -> Array:
    """(o, i, *kernel) -> (ceil(o / lanes), ceil(i / in_lanes), *kernel, in_lanes, lanes), zero-padded."""
    outer, inner = ceil_div(weight.shape[0], lanes), ceil_div(weight.shape[1], in_lanes)
    padded = _padded(weight, {0: outer * lanes, 1: inner * in_lanes})
    split = padded.reshape(outer, lanes, inner, in_lanes, *weight.shape[2:])
    rank = weight.ndim - 2
    order = [0, 2, *range(4, 4 + rank), 3, 1]
    return np.ascontiguousarray(split.transpose(order))


def pack_filter_groups(weight: Array, in_lanes: int, lanes: int, group: int) -> Array:
    """Like `pack_filter`, with `group` channels of a filter adjacent: (..., in_lanes / group, lanes * group)."""
    packed = pack_filter(weight, in_lanes, lanes)
    split = packed.reshape(*packed.shape[:-2], in_lanes // group, group, lanes)
    return np.ascontiguousarray(split.swapaxes(-1, -2)).reshape(*packed.shape[:-2], in_lanes // group, lanes * group)


def pack_depthwise(weight: Array, lanes: int) -> Array:
    """(c, 1, *kernel) -> (ceil(c / lanes), *kernel, lanes)."""
    return np.ascontiguousarray(pack_channels(weight.swapaxes(0, 1), lanes)[0])


def pack_winograd(weight: Array, lanes: int) -> Array:
    """(o, i, kernel, kernel) -> (ceil(o / lanes), kernel^2, i, lanes)."""
    filters, channels = weight.shape[:2]
    outer = ceil_div(filters, lanes)
    padded = _padded(weight.reshape(filters, channels, -1), {0: outer * lanes})
    return np.ascontiguousarray(padded.reshape(outer, lanes, channels, -1).transpose(0, 3, 2, 1))


def transform_winograd(packed: Array, matrix: NDArray[np.float64]) -> Array:
    """Transform a filter packed by `pack_winograd`, (o, 9, i, lanes) -> (o, edge^2, i, lanes), in double precision.
    `matrix` is `winograd_transforms.weight_matrix`: (9, edge^2)."""
    outer, taps, channels, lanes = packed.shape
    filters = packed.reshape(outer, taps, -1)
    spread = np.empty((outer, matrix.shape[1], filters.shape[-1]), packed.dtype)
    for block in range(outer):
        for start in range(0, filters.shape[-1], _COLUMNS):
            part = slice(start, start + _COLUMNS)
            spread[block, :, part] = matrix.T @ filters[block, :, part].astype(np.float64)
    return spread.reshape(outer, -1, channels, lanes)


def expand_winograd(weight: Tensor, matrix: Tensor) -> Tensor:
    """Transform a filter packed by `pack_winograd` at load time, (o, 9, i, lanes) -> (o, edge^2, i, lanes), in float64.

    `matrix` is `winograd_transforms.weight_matrix`: (9, edge^2), float64.
    """
    outer, taps, channels, lanes = weight.shape
    tap = te.reduce_axis((0, taps), "tap")

    def point(block: Expr, index: Expr, channel: Expr, lane: Expr) -> Expr:
        value = weight(block, tap, channel, lane).astype("float64")
        return te.sum(value * matrix(tap, index), axis=tap)

    shape = (outer, matrix.shape[1], channels, lanes)
    spread = te.compute(shape, point, name="expand")
    return te.compute(shape, lambda *at: spread(*at).astype(weight.dtype), name="expand_rounded")


def repack_filter(weight: Tensor, kernel: Sequence[int]) -> Tensor:
    """Convert an untransformed filter from `pack_winograd` form, (o, taps, i, lanes), to `pack_filter` form with equal
    blocks: (o, i / lanes, *kernel, lanes, lanes)."""
    outer, _, channels, lanes = weight.shape

    def point(block: Expr, inner: Expr, *rest: Expr) -> Expr:
        tap: Index = 0
        for index, size in zip(rest[:-2], kernel, strict=True):
            tap = tap * size + index
        return weight(block, tap, inner * lanes + rest[-2], rest[-1])

    shape = (outer, channels // lanes, *kernel, lanes, lanes)
    return te.compute(shape, point, name="repack")


def merge_groups(weight: Array, groups: int, merged: int) -> Array:
    """Merge each `merged` neighboring groups of a grouped convolution into one, with zeros between them.

    (o, i / groups, *kernel) -> (o, i / groups * merged, *kernel).
    """
    filters, channels = weight.shape[:2]
    result = np.zeros((filters, channels * merged, *weight.shape[2:]), weight.dtype)
    size = filters // groups
    for group in range(groups):
        first = group % merged * channels
        result[group * size : (group + 1) * size, first : first + channels] = weight[group * size : (group + 1) * size]
    return result


def _padded(values: Array, sizes: dict[int, int]) -> Array:
    amounts = [(0, sizes.get(axis, size) - size) for axis, size in enumerate(values.shape)]
    return np.pad(values, amounts) if any(after for _, after in amounts) else values


def pack_tensor(data: Tensor, order: Sequence[int], lanes: int) -> Tensor:
    """Pack a logical tensor into (batch, channel blocks, *spatial, lanes); `order` lists the logical axis of each, as
    in `Blocked`."""
    shape = list(data.shape)
    channels = shape[order[1]]
    exact = isinstance(channels, int | tirx.IntImm) and int(channels) % lanes == 0
    physical = [shape[axis] for axis in order]
    physical[1] = ceil_div(int(channels), lanes)

    def point(*at: Expr) -> Expr:
        outer = list(at[:-1])
        outer[1] = outer[1] * lanes + at[-1]
        index = [None] * len(order)
        for axis, value in zip(order, outer, strict=True):
            index[axis] = value
        if exact:
            return data(*index)
        return tirx.if_then_else(outer[1] < channels, data(*index), tirx.const(0, data.dtype))

    return te.compute((*physical, lanes), point, name="pack")


def unpack_tensor(data: Tensor, order: Sequence[int], channels: int) -> Tensor:
    """Inverse of `pack_tensor`."""
    lanes = int(data.shape[-1])
    shape: list[Index | None] = [None] * len(order)
    for index, axis in enumerate(order):
        shape[axis] = channels if index == 1 else data.shape[index]

    def point(*at: Expr) -> Expr:
        outer = [at[axis] for axis in order]
        channel = outer[1]
        outer[1] = channel // lanes
        return data(*outer, channel % lanes)

    return te.compute(shape, point, name="unpack")


def pack_filter_tensor(weight: Tensor, in_lanes: int, lanes: int) -> Tensor:
    """Like `pack_filter`, for weights unknown at compile time."""
    filters, channels, *kernel = [int(size) for size in weight.shape]
    shape = (ceil_div(filters, lanes), ceil_div(channels, in_lanes), *kernel, in_lanes, lanes)

    def point(outer: Expr, inner: Expr, *rest: Expr) -> Expr:
        o, i = outer * lanes + rest[-1], inner * in_lanes + rest[-2]
        inside = tirx.all(o < filters, i < channels)
        return tirx.if_then_else(inside, weight(o, i, *rest[:-2]), tirx.const(0, weight.dtype))

    return te.compute(shape, point, name="pack_filter")


def narrowed_tensor(data: Tensor, halves: Operation) -> Tensor:
    """Convert float32 to the 16-bit floats of an operation."""
    return te.compute(data.shape, lambda *at: narrowed(data(*at), halves), name="narrow")


def widened_tensor(stored: Tensor) -> Tensor:
    """Inverse of `narrowed_tensor`."""
    return te.compute(stored.shape, lambda *at: number(stored(*at), "float32"), name="widen")


def pack_words(data: Tensor, order: Sequence[int], operation: Operation) -> Tensor:
    """Pack a logical tensor of few channels into int32 (batch, ceil(channels / group), *spatial): a group of channels
    per word, see `DotWorkload`. Float data is converted to the operation's type, int8 to unsigned."""
    group = operation.group
    shape = list(data.shape)
    channels = int(shape[order[1]])
    physical = [shape[axis] for axis in order]
    physical[1] = ceil_div(channels, group)

    def element(at: Sequence[Expr], channel: int) -> Expr:
        index: list[Index | None] = [None] * len(order)
        for axis, value in zip(order, [at[0], channel, *at[2:]], strict=True):
            index[axis] = value
        return data(*index)

    def word(at: Sequence[Expr], start: int) -> Expr:
        values = [element(at, channel) for channel in range(start, min(start + group, channels))]
        if group == 2:
            return rounded_pair(values[0], values[1] if values[1:] else tirx.const(0.0, "float32"), operation)
        shift = tirx.const(128 if str(data.dtype) == "int8" else 0, "int32")
        joined = tirx.Cast("int32", values[0]) + shift
        for position, value in enumerate(values[1:], 1):
            joined = joined | (tirx.Cast("int32", value) + shift) << 8 * position
        return joined

    def point(*at: Expr) -> Expr:
        value = word(at, 0)
        for block in range(1, int(physical[1])):
            value = tirx.Select(at[1] == block, word(at, block * group), value)
        return value

    return te.compute(physical, point, name="words")
