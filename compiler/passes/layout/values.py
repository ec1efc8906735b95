"""Values of a function in plain and in blocked form, each made when first asked for.

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
from schedules.instructions.products.operation import Operation
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
# Element types that lie in blocks.
BLOCKABLE = ("float32", "int32", "int16", "uint16", "int8", "uint8")


@dataclass(frozen=True, eq=False)
class Blocked:
    """A tensor in blocked layout: (batch, channel blocks, *spatial, lanes).

    `shape` is the logical shape; `order[i]` is the logical axis behind physical axis i: the batch, the channels, then
    the spatial dimensions. The lanes behind the last channel hold anything. `narrow` says that they are 16-bit
    floats, as `Operation.stored`.
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
        """The spatial sizes, 0 where they are symbolic."""
        return known_sizes([self.shape[axis] for axis in self.order[2:]])

    @property
    def batch(self) -> Index:
        return self.shape[self.order[0]]


@dataclass(eq=False)
class Value:
    """One value of the function; `parts` are those of a tuple. `narrow` is its blocked form in 16-bit floats."""

    plain: Expr | None = None
    blocked: Blocked | None = None
    narrow: Blocked | None = None
    packed: dict[Order, Blocked] = field(default_factory=dict)
    packed_narrow: dict[Order, Blocked] = field(default_factory=dict)
    parts: list[Value] | None = None


class LayoutBuilder:
    """Emits bindings of a dataflow block and keeps the forms of its values."""

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
        """The value that a variable or constant of the old function stands for."""
        found = self._values.get(expr) if isinstance(expr, relax.Var) else None
        return found if found is not None else Value(plain=expr)

    def define(self, variable: Var, value: Value) -> None:
        """Set the value of a variable of the old function."""
        self._values[variable] = value

    def forget_block(self) -> None:
        """Start another block: what is not plain does not outlive one."""
        self.bindings = []
        self._values = {}
        self.definitions = {}

    def start_binding(self, variable: Var, value: Expr) -> None:
        """Record the value of a variable of the old function. Conversions to a wider type are not shared between
        bindings: each reader's own conversion becomes part of its kernel."""
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

        Kernels of equal `key`, name and pattern whose arguments have equal types are the same, and made once.
        """
        made = None if key is None else (key, name, pattern, *(_argument_key(each) for each in arguments))
        known = None if made is None else self._kernel_calls.get(made)
        if known is not None:
            tensors = [each for each in arguments if not isinstance(each, list)]
            given = relax.Tuple([*tensors, *known.args[1].fields[len(tensors) :]])  # behind the tensors are sizes
            return self.emit(relax.Call(known.op, [known.args[0], given], known.attrs, known.ty_args), name)
        attributes = {} if pattern is None else {"primfunc_attrs": {"op_pattern": pattern}}
        call = self._builder.call_te(function, *arguments, primfunc_name_hint=name, **attributes)
        if made is not None:
            self._kernel_calls[made] = call
        return self.emit(call, name)

    def function(self, variable: GlobalVar) -> PrimFunc:
        """The kernel that a global variable of the module names."""
        return self._mod[variable]

    # Conversions.

    def plain(self, expr: Expr) -> Expr:
        """The plain form of an operand of the old function."""
        return self.plain_value(self.value(expr))

    def plain_value(self, value: Value) -> Expr:
        if value.plain is None and value.parts is not None:
            value.plain = self.emit(relax.Tuple([self.plain_value(part) for part in value.parts]))
        if value.plain is None:
            found = self._floats(value)
            assert found is not None
            plain = self._unpack(found)
            if value.blocked is None:
                return plain  # of a narrow value each reader has its own, in its kernel
            value.plain = plain
        return value.plain

    def _floats(self, value: Value) -> Blocked | None:
        """The blocked form as float32, converted from the 16-bit form if there is no other."""
        if value.blocked is not None or value.narrow is None:
            return value.blocked
        narrow = value.narrow
        if narrow.expr not in self._widened:
            wide = self.emit_kernel(widened_tensor, narrow.expr, name="widen")
            self._widened[narrow.expr] = Blocked(wide, narrow.shape, narrow.order)
        return self._widened[narrow.expr]

    def narrow(self, expr: Expr, order: Order) -> Blocked:
        """The blocked form of a float operand in 16 bits, converted when it has none."""
        value = self.value(expr)
        if value.narrow is not None and value.narrow.order == order:
            return value.narrow
        if order not in value.packed_narrow:
            value.packed_narrow[order] = self.narrowed(self.as_blocked(expr, order))
            if isinstance(expr, relax.Var):
                self._values.setdefault(expr, value)
        return value.packed_narrow[order]

    def narrowed(self, blocked: Blocked) -> Blocked:
        """Blocked floats in 16 bits."""
        assert self.halves is not None
        if isinstance(blocked.expr, GenericConst):
            stored = as_constant(stored_halves(array_of(blocked.expr), self.halves))
        else:
            stored = self.emit_kernel(partial(narrowed_tensor, halves=self.halves), blocked.expr, name="narrow")
        return Blocked(stored, blocked.shape, blocked.order, narrow=True)

    def blocked(self, expr: Expr, order: Order | None = None) -> Blocked | None:
        """The blocked form that an operand has already (in `order`, if given), without converting anything."""
        value = self.value(expr)
        found = self._floats(value)
        if found is not None and (order is None or found.order == order):
            return found
        return None if order is None else value.packed.get(order)

    def stored(self, expr: Expr, order: Order | None = None) -> Blocked | None:
        """`blocked`, in 16 bits when that is how the operand is stored."""
        narrow = self.value(expr).narrow
        if narrow is not None and (order is None or narrow.order == order):
            return narrow
        return self.blocked(expr, order)

    def as_blocked(self, expr: Expr, order: Order) -> Blocked:
        """The blocked form of an operand, converted when it has none."""
        found = self.blocked(expr, order)
        if found is not None:
            return found
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
        """An operand of an elementwise operator whose result is laid out as `to`; None when that takes a copy in plain
        layout anyway."""
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
            return as_constant(array_of(plain).reshape(()))  # legalization writes a scalar into the code
        return self._reshape(plain, [1] * rank) if shape else plain

    def _channelless(self, plain: Expr, full: Sequence[Index], order: Order) -> Expr:
        """A tensor of one channel, shared by all lanes: (batch, 1, *spatial, 1)."""
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
    """Equal for arguments of a kernel that do not tell two kernels apart: tensors of one type, equal sizes."""
    if isinstance(argument, list):
        return tuple(each if isinstance(each, int) else StructuralKey(each) for each in argument)
    return StructuralKey(argument.ty)


def _rising(order: Order, shape: Sequence[Index]) -> bool:
    """True if the axes of more than one element lie in their logical order."""
    kept = [axis for axis in order if not _same(shape[axis], 1)]
    return kept == sorted(kept)


def _same(left: Index, right: Index) -> bool:
    return isinstance(left, int) and isinstance(right, int) and left == right


def can_block(expr: Expr, order: Order, dtypes: Sequence[str] = ("float32",)) -> bool:
    """True if a tensor can be laid out in blocks: of one of `dtypes`, its channels known, none of its sizes zero."""
    shape = shape_of(expr)
    if shape is None or dtype_of(expr) not in dtypes or len(shape) != len(order):
        return False
    return isinstance(shape[order[1]], int) and not any(_same(size, 0) for size in shape)


def known_sizes(sizes: Sequence[Index]) -> tuple[int, ...]:
    """Sizes as workloads hold them: 0 for those that are symbolic."""
    return tuple(size if isinstance(size, int) else 0 for size in sizes)


Answer = Blocked | Value | None
Handler = Callable[[LayoutBuilder, Call], Answer]

HANDLERS: dict[str, Handler] = {}

ANCHORS = frozenset(f"relax.nn.conv{rank}d{kind}" for rank in (1, 2, 3) for kind in ("", "_transpose"))
"""Operators that start a blocked region; a function without one is left as it is."""


NARROW_READERS = frozenset(
    {
        *(f"relax.nn.conv{rank}d" for rank in (1, 2, 3)),
        *(f"relax.nn.{kind}_pool{rank}d" for kind in ("max", "avg") for rank in (1, 2, 3)),
        *(f"relax.nn.adaptive_{kind}_pool{rank}d" for kind in ("max", "avg") for rank in (1, 2, 3)),
        "relax.concat",
    }
)
"""Operators whose handlers read blocked floats stored as bfloat16 as they are."""
handles = registers_in(HANDLERS)
"""Registers a handler of operators. It answers with the result's blocked form (or a Value), or with None: then the
operator runs on plain operands."""


_COLUMNS = 384  # of a product that BLAS runs on one thread: on a busy machine, more threads only wait for each other


def pack_channels(values: Array, lanes: int) -> Array:
    """(n, c, *spatial) -> (n, ceil(c / lanes), *spatial, lanes), zeros behind the last channel."""
    images, channels = values.shape[:2]
    blocks = ceil_div(channels, lanes)
    padded = _padded(values, {1: blocks * lanes})
    split = padded.reshape(images, blocks, lanes, *values.shape[2:])
    return np.ascontiguousarray(np.moveaxis(split, 2, -1))


def pack_filter(weight: Array, in_lanes: int, lanes: int) -> Array:
    """(o, i, *kernel) -> (ceil(o / lanes), ceil(i / in_lanes), *kernel, in_lanes, lanes), filled up with zeros."""
    outer, inner = ceil_div(weight.shape[0], lanes), ceil_div(weight.shape[1], in_lanes)
    padded = _padded(weight, {0: outer * lanes, 1: inner * in_lanes})
    split = padded.reshape(outer, lanes, inner, in_lanes, *weight.shape[2:])
    rank = weight.ndim - 2
    order = [0, 2, *range(4, 4 + rank), 3, 1]
    return np.ascontiguousarray(split.transpose(order))


def pack_filter_groups(weight: Array, in_lanes: int, lanes: int, group: int) -> Array:
    """`pack_filter` with `group` channels of a filter next to each other: (..., in_lanes / group, lanes * group)."""
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
    """`pack_winograd` of a filter, (o, 9, i, lanes), to that of the transformed one, (o, edge^2, i, lanes), computed in
    double precision. `matrix` is `winograd_transforms.weight_matrix`: (9, edge^2)."""
    outer, taps, channels, lanes = packed.shape
    filters = packed.reshape(outer, taps, -1)
    spread = np.empty((outer, matrix.shape[1], filters.shape[-1]), packed.dtype)
    for block in range(outer):
        for start in range(0, filters.shape[-1], _COLUMNS):
            part = slice(start, start + _COLUMNS)
            spread[block, :, part] = matrix.T @ filters[block, :, part].astype(np.float64)
    return spread.reshape(outer, -1, channels, lanes)


def expand_winograd(weight: Tensor, matrix: Tensor) -> Tensor:
    """`pack_winograd` of the filter itself, (o, 9, i, lanes), to that of the transformed one, in double precision.

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
    """`pack_winograd` of a filter itself, (o, taps, i, lanes), to `pack_filter` of it in blocks of as many channels:
    (o, i / lanes, *kernel, lanes, lanes)."""
    outer, _, channels, lanes = weight.shape

    def point(block: Expr, inner: Expr, *rest: Expr) -> Expr:
        tap: Index = 0
        for index, size in zip(rest[:-2], kernel, strict=True):
            tap = tap * size + index
        return weight(block, tap, inner * lanes + rest[-2], rest[-1])

    shape = (outer, channels // lanes, *kernel, lanes, lanes)
    return te.compute(shape, point, name="repack")


def merge_groups(weight: Array, groups: int, merged: int) -> Array:
    """The same grouped convolution with `merged` neighbouring groups made one, by zeros between them.

    (o, i / groups, *kernel) -> (o, i / groups * merged, *kernel).
    """
    filters, channels = weight.shape[:2]
    result = np.zeros((filters, channels * merged, *weight.shape[2:]), weight.dtype)
    each = filters // groups
    for group in range(groups):
        first = group % merged * channels
        result[group * each : (group + 1) * each, first : first + channels] = weight[group * each : (group + 1) * each]
    return result


def _padded(values: Array, sizes: dict[int, int]) -> Array:
    amounts = [(0, sizes.get(axis, size) - size) for axis, size in enumerate(values.shape)]
    return np.pad(values, amounts) if any(after for _, after in amounts) else values


def pack_tensor(data: Tensor, order: Sequence[int], lanes: int) -> Tensor:
    """A logical tensor to (batch, channel blocks, *spatial, lanes); `order` lists the logical axis of each, as in
    `Blocked`."""
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
    """The inverse of `pack_tensor`."""
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
    """`pack_filter` for weights that are not known while compiling."""
    filters, channels, *kernel = [int(size) for size in weight.shape]
    shape = (ceil_div(filters, lanes), ceil_div(channels, in_lanes), *kernel, in_lanes, lanes)

    def point(outer: Expr, inner: Expr, *rest: Expr) -> Expr:
        o, i = outer * lanes + rest[-1], inner * in_lanes + rest[-2]
        inside = tirx.all(o < filters, i < channels)
        return tirx.if_then_else(inside, weight(o, i, *rest[:-2]), tirx.const(0, weight.dtype))

    return te.compute(shape, point, name="pack_filter")


def narrowed_tensor(data: Tensor, halves: Operation) -> Tensor:
    """float32 as the 16-bit floats of an operation."""
    return te.compute(data.shape, lambda *at: narrowed(data(*at), halves), name="narrow")


def widened_tensor(stored: Tensor) -> Tensor:
    """The inverse of `narrowed_tensor`."""
    return te.compute(stored.shape, lambda *at: number(stored(*at), "float32"), name="widen")


def pack_words(data: Tensor, order: Sequence[int], operation: Operation) -> Tensor:
    """A logical tensor of few channels to int32 (batch, ceil(channels / group), *spatial): a group of channels per
    word, as `DotWorkload` states. Float data becomes the operation's, int8 is made unsigned."""
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
