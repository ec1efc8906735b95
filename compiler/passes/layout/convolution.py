"""Convolutions in blocked layouts: choice of the algorithm by shape, and packing of the weights.

Also covers convolutions of 8-bit integers and the operators between them. To estimate a kernel's time, symbolic sizes
are replaced by likely values.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import gcd, lcm

import numpy as np
from tvm import relax
from tvm.ir import GenericConst, Var
from tvm.sym import Analyzer
from tvm.tirx import IntImm

from compiler.passes.layout.values import (
    BLOCKABLE,
    Blocked,
    LayoutBuilder,
    Order,
    Value,
    can_block,
    expand_winograd,
    handles,
    known_sizes,
    merge_groups,
    pack_channels,
    pack_depthwise,
    pack_filter,
    pack_filter_groups,
    pack_filter_tensor,
    pack_winograd,
    pack_words,
    repack_filter,
    transform_winograd,
)
from compiler.passes.layout.windows import SamePadding, same_padding
from compiler.passes.rewriting.expansion import Expansion
from compiler.passes.rewriting.matching import array_of, as_constant, dtype_of, rank_of, shape_of, static_shape
from schedules.annotations import FUSABLE
from schedules.conv import compute as conv_compute
from schedules.conv.choose import (
    FloatChoice,
    FloatConvolution,
    SparseChoice,
    choose_float,
    choose_integer,
    narrow_workload,
)
from schedules.conv.dot import conv_dot
from schedules.conv.folded import FoldedWorkload, conv_folded, fold_filter
from schedules.conv.sparse import conv_sparse, pack_sparse_filter
from schedules.conv.winograd import conv_winograd_integer, pack_integer_filter
from schedules.conv.winograd_transforms import weight_matrix
from schedules.conv.workload import (
    ConvWorkload,
    DepthwiseDotWorkload,
    DotWorkload,
    IntegerWinogradWorkload,
    WindowWorkload,
    WinogradWorkload,
)
from schedules.instructions.rounding import stored_halves
from schedules.ir.numbers import ceil_div
from schedules.ir.tir import structural_map
from schedules.ir.tvm_types import Call, Expr, Index, Tensor


@dataclass(frozen=True)
class Conv:
    """A convolution's attributes, layouts resolved into the order of axes."""

    order: Order
    out_order: Order
    filter_order: Order
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pad: tuple[tuple[int, int], ...]
    groups: int
    same: str = ""  # "upper" or "lower" if padding follows from sizes

    @classmethod
    def of(cls, call: Call) -> Conv | None:
        """Return the attributes; None if a layout is already blocked."""
        attrs = call.attrs
        spatial = "DHW"[-(len(attrs.strides)) :]
        layouts = str(attrs.data_layout), str(attrs.kernel_layout), str(attrs.out_layout) or str(attrs.data_layout)
        letters = f"NC{spatial}", f"OI{spatial}", f"NC{spatial}"
        if any(sorted(layout) != sorted(order) for layout, order in zip(layouts, letters, strict=True)):
            return None
        orders = [
            tuple(layout.index(letter) for letter in order) for layout, order in zip(layouts, letters, strict=True)
        ]
        rank = len(spatial)
        padding = [int(amount) for amount in attrs.padding]
        return cls(
            orders[0],
            orders[2],
            orders[1],
            tuple(int(each) for each in attrs.strides),
            tuple(int(each) for each in attrs.dilation),
            tuple((padding[i], padding[i + rank]) for i in range(rank)),
            int(attrs.groups),
        )

    @property
    def is_plain(self) -> bool:
        """True if it has no padding, and its axes are in ONNX's order."""
        orders = (self.order, self.out_order, self.filter_order)
        return not any(map(any, self.pad)) and all(list(order) == sorted(order) for order in orders)

    def long_last(self, sizes: Sequence[Index]) -> Conv:
        """Move spatial dimensions with one output element to the front.

        Register tiles run along the last dimension, so a column of pixels would give them one pixel each.
        """
        spatial = range(len(self.strides))
        single = [isinstance(sizes[axis], int) and sizes[axis] == 1 for axis in self.out_order[2:]]
        moved = sorted(spatial, key=lambda i: not single[i])
        if moved == list(spatial) or not single[-1]:
            return self
        axes = [0, 1, *(2 + i for i in moved)]
        return Conv(
            tuple(self.order[axis] for axis in axes),
            tuple(self.out_order[axis] for axis in axes),
            tuple(self.filter_order[axis] for axis in axes),
            tuple(self.strides[i] for i in moved),
            tuple(self.dilations[i] for i in moved),
            tuple(self.pad[i] for i in moved),
            self.groups,
            self.same,
        )

    def padded_same(self, padding: SamePadding, kernel: Sequence[int]) -> Conv:
        """Return the same convolution with its own padding for the data."""
        return replace(self, pad=padding.pads(kernel, self.strides, self.dilations), same=padding.mode)


def float_convolution(builder: LayoutBuilder, call: Call) -> Blocked | Value | None:
    """Compute a float32 convolution in blocks; None if not possible."""
    conv = Conv.of(call)
    data, weight = call.args
    sizes, filter_shape = shape_of(call), static_shape(weight)
    if conv is None or filter_shape is None:
        return None
    padding = same_padding(builder, data)
    if padding is not None and padding.fill == 0 and conv.is_plain:
        data, conv = padding.data, conv.padded_same(padding, filter_shape[2:])
    conv = conv.long_last(sizes) if sizes is not None else conv
    if not can_block(data, conv.order) or not can_block(call, conv.out_order):
        return None
    if any(amount < 0 for pair in conv.pad for amount in pair):
        return None
    return BlockedConv(builder, conv, data, weight, tuple(shape_of(call) or ())).build()


class BlockedConv:
    """One convolution being converted to a blocked layout."""

    def __init__(
        self, builder: LayoutBuilder, conv: Conv, data: Expr, weight: Expr, out_shape: tuple[Index, ...]
    ) -> None:
        self.builder, self.conv, self.data, self.out_shape = builder, conv, data, out_shape
        self.weight = builder.plain(weight)
        shape = shape_of(data) or []
        batch = shape[conv.order[0]]
        self.batch = batch if isinstance(batch, int) else 0
        self.channels: int = shape[conv.order[1]]
        self.spatial = known_sizes([shape[axis] for axis in conv.order[2:]])
        self.out_sizes = [out_shape[axis] for axis in conv.out_order[2:]]
        filter_shape = shape_of(self.weight) or []
        self.filters: int = filter_shape[conv.filter_order[0]]
        self.kernel: tuple[int, ...] = tuple(filter_shape[axis] for axis in conv.filter_order[2:])

    def build(self) -> Blocked | Value | None:
        constant = isinstance(self.weight, GenericConst)
        if self.conv.groups > 1 and not constant:
            return None  # groups are merged with zeros between them, which requires known weights
        if self.conv.groups == self.channels == self.filters and self.conv.groups > 1:
            return self._depthwise()
        groups, merged = self._merged_groups()
        if not constant:
            return self._direct_unknown_weight()
        values = merge_groups(self._filter_values(), self.conv.groups, merged) if merged > 1 else self._filter_values()
        work = self._workload(groups, self._in_lanes(groups), merged)
        shape, halves = shape_of(self.data) or [], self.builder.halves
        case = FloatConvolution(
            work,
            narrow=None if halves is None else narrow_workload(work, halves, self.builder.machine),
            images=common_sizes([shape[axis] for axis in self.conv.order[2:]]) if work.is_open else (),
            out_order=self.conv.out_order,
            kept=lambda: _kept(pack_filter(values, work.in_block, work.block), work, values),
        )
        return self._emit_chosen(choose_float(case, self.builder.machine, self.builder.choose), values)

    def _emit_chosen(self, chosen: FloatChoice, values: np.ndarray) -> Blocked | Value:
        """Pack the weights for an algorithm and call its kernel."""
        if isinstance(chosen, FoldedWorkload):
            return self._emit_folded(chosen, values)
        if isinstance(chosen, SparseChoice):
            return self._emit_sparse(chosen.work, values)
        if isinstance(chosen, WinogradWorkload):
            return self._emit_winograd(chosen, values)
        if isinstance(chosen, DotWorkload):
            stored = stored_halves(values, chosen.operation)
            narrow = pack_filter_groups(stored, chosen.in_block, chosen.panel, chosen.group)
            return self._emit(lambda data, weight, sizes: conv_dot(data, weight, chosen, sizes), chosen, narrow)
        packed = as_constant(pack_filter(values, chosen.in_block, chosen.block))
        if chosen.in_block == chosen.block and self.channels % chosen.block == 0:
            repack = partial(repack_filter, kernel=self.kernel)
            self.builder.expansions.repacked[packed] = self._filter_key(), repack
        return self._direct(chosen, packed)

    def _emit_winograd(self, chosen: WinogradWorkload, values: np.ndarray) -> Blocked:
        return self._emit(
            lambda data, weight, sizes: conv_compute.conv_winograd(data, weight, chosen, sizes),
            chosen,
            self._winograd_weight(values, chosen),
            reads_half=True,
            key=("winograd", chosen),
        )

    def _emit_folded(self, work: FoldedWorkload, values: np.ndarray) -> Value:
        packed = as_constant(pack_filter(fold_filter(values, work), work.in_block, work.block))
        result = self.builder.emit_kernel(
            lambda data, weight, sizes: conv_folded(data, weight, work, sizes),
            self._stored(work, False),
            packed,
            self.out_sizes,
            name=f"conv{work.rank}d",
            pattern=FUSABLE,
        )
        return Value(plain=result)

    def _emit_sparse(self, work: ConvWorkload, values: np.ndarray) -> Blocked:
        sparse, weight = pack_sparse_filter(pack_filter(values, work.in_block, work.block), work)
        index = as_constant(weight.index)
        return self._emit(
            lambda data, kept, sizes, index: conv_sparse(data, kept, index, sparse, sizes), sparse, weight.values, index
        )

    def _winograd_weight(self, values: np.ndarray, work: WinogradWorkload) -> Expr:
        """Return the filter, or the transformed one, which the module need not store: up to 36 numbers for 9."""
        packed = pack_winograd(values, work.block)
        if work.transforms_filters:
            return as_constant(np.ascontiguousarray(packed.swapaxes(1, 2)))
        stored = packed, weight_matrix(work.tile, work.strides[0])
        constant = as_constant(transform_winograd(*stored))
        self.builder.expansions.known[constant] = Expansion(stored, expand_winograd, "expand_filter", ((0, 2), ()))
        self.builder.expansions.filters[self._filter_key()] = constant, stored[0]
        return constant

    def _filter_key(self) -> tuple[Hashable, ...]:
        return self.weight, self.conv.filter_order, self._merged_groups()

    def _filter_values(self) -> np.ndarray:
        values: np.ndarray = array_of(self.weight).transpose(self.conv.filter_order)
        return values

    def _merged_groups(self) -> tuple[int, int]:
        """Return (groups left, groups merged into one): all but the last span whole blocks on both sides, or there is
        one."""
        groups, lanes = self.conv.groups, self.builder.lanes
        if groups == 1:
            return 1, 1
        each, filters_each = self.channels // groups, self.filters // groups
        merged = min(groups, lcm(lanes // gcd(lanes, each), lanes // gcd(lanes, filters_each)))
        return ceil_div(groups, merged), merged

    def _in_lanes(self, groups: int) -> int:
        """Plain input is read unblocked if there are so few channels that a block would be mostly empty."""
        blocked = self.builder.blocked(self.data, self.conv.order) is not None
        few = groups == 1 and self.channels * 2 <= self.builder.lanes
        return 1 if few and not blocked else self.builder.lanes

    def _workload(self, groups: int, in_lanes: int, merged: int = 1) -> ConvWorkload:
        conv = self.conv
        return ConvWorkload(
            **vars(self._window()),
            filters=self.filters,
            groups=groups,
            in_block=in_lanes,
            channels_each=self.channels // conv.groups * merged if groups > 1 else 0,
            filters_each=self.filters // conv.groups * merged if groups > 1 else 0,
        )

    def _window(self) -> WindowWorkload:
        conv = self.conv
        return WindowWorkload(
            batch=self.batch,
            channels=self.channels,
            block=self.builder.lanes,
            spatial=self.spatial,
            kernel=self.kernel,
            strides=conv.strides,
            dilations=conv.dilations,
            pad=conv.pad,
            dtype="float32",
            same=conv.same if 0 in self.spatial else "",
        )

    def _depthwise(self) -> Blocked:
        work = self._window()
        packed = pack_depthwise(self._filter_values(), work.block)
        return self._emit(
            lambda data, weight, sizes: conv_compute.conv_depthwise(data, weight, work, sizes),
            work,
            packed,
            reads_half=True,
        )

    def _direct(self, work: ConvWorkload, packed: Expr) -> Blocked:
        return self._emit(
            lambda data, weight, sizes: conv_compute.conv_direct(data, weight, work, sizes),
            work,
            packed,
            key=("direct", work),
        )

    def _direct_unknown_weight(self) -> Blocked:
        work = self._workload(1, self._in_lanes(1))
        order = list(self.conv.filter_order)
        weight = self.weight
        if order != sorted(order):
            weight = self.builder.emit(relax.op.permute_dims(weight, order), "filter")
        packed = self.builder.emit_kernel(
            lambda values: pack_filter_tensor(values, work.in_block, work.block), weight, name="pack_filter"
        )
        return self._direct(work, packed)

    def _emit(
        self,
        kernel: Callable[..., Tensor],
        work: WindowWorkload,
        weight: Expr,
        *more: object,
        reads_half: bool = False,
        key: Hashable = None,
    ) -> Blocked:
        """Call a kernel on data, weights, output sizes and `more`.

        `reads_half`: it computes in float32 and can also read 16-bit floats. `key`: what determines the kernel besides
        its operand types, as in `LayoutBuilder.emit_kernel`.
        """
        if isinstance(weight, np.ndarray):
            weight = as_constant(weight)
        data = self._stored(work, reads_half)
        name = f"conv{work.rank}d"
        operands = data, weight, self.out_sizes, *more
        result = self.builder.emit_kernel(kernel, *operands, name=name, pattern=FUSABLE, key=key)
        return Blocked(result, self.out_shape, self.conv.out_order)

    def _stored(self, work: WindowWorkload, reads_half: bool) -> Expr:
        """Return the input in the form the workload needs."""
        order = self.conv.order
        if isinstance(work, DotWorkload) and work.words:
            plain = self.builder.plain(self.data)
            return self.builder.emit_kernel(lambda data: pack_words(data, order, work.operation), plain, name="words")
        if isinstance(work, DotWorkload) and work.of_halves:
            return self.builder.narrow(self.data, order).expr
        if getattr(work, "in_block", work.block) == 1:
            data = self.builder.plain(self.data)
            if list(order) != sorted(order):
                data = self.builder.emit(relax.op.permute_dims(data, list(order)), "channels_first")
            return data
        half = self.builder.stored(self.data, order) if reads_half else None
        if half is not None:
            return half.expr
        return self.builder.as_blocked(self.data, order).expr


def _kept(packed: np.ndarray, work: ConvWorkload, values: np.ndarray) -> float:
    """Return the share of nonzero blocks of a packed filter."""
    return float(np.count_nonzero(np.any(packed, axis=-1)) / (work.out_blocks * values[0].size))


_SIDES = (160, 224, 384)  # common image sides


def common_sizes(sizes: Sequence[Expr]) -> list[tuple[int, ...]]:
    """Return `sizes` with symbols replaced by numbers, once per common image side."""
    return [tuple(_at(size, side) for size in sizes) for side in _SIDES]


def _at(size: Expr, side: int) -> int:
    if isinstance(size, int):
        return size
    known = Analyzer().simplify(structural_map(size, (Var, lambda _: IntImm("int64", side))))
    return int(known) if isinstance(known, IntImm) else side


_BYTES = ("int8", "uint8")


@handles("relax.nn.conv1d", "relax.nn.conv2d", "relax.nn.conv3d")
def convolution(builder: LayoutBuilder, call: Call) -> Blocked | Value | None:
    if dtype_of(call) == "int32":
        return integer_convolution(builder, call)
    return float_convolution(builder, call)


def integer_convolution(builder: LayoutBuilder, call: Call) -> Blocked | None:
    """Compute an int32 convolution of 8-bit data and constant int8 weights; None for any other."""
    conv = Conv.of(call)
    data, weight = call.args
    if conv is None:
        return None
    weight = builder.plain(weight)
    filter_shape = static_shape(weight)
    if not isinstance(weight, GenericConst) or dtype_of(weight) != "int8" or filter_shape is None:
        return None
    if not can_block(data, conv.order, _BYTES) or not can_block(call, conv.out_order, ("int32",)):
        return None
    if any(amount < 0 for pair in conv.pad for amount in pair):
        return None
    padded = _padding_before(builder, data, conv)
    fill = 0
    if padded is not None:
        data, conv, fill = padded
    sizes = tuple(shape_of(call) or ())
    return _IntegerConv(builder, conv.long_last(sizes), data, weight, sizes, fill).build()


def _padding_before(builder: LayoutBuilder, data: Expr, conv: Conv) -> tuple[Expr, Conv, int] | None:
    """Return the operand of a constant-value padding that feeds an unpadded convolution, and the convolution with
    it."""
    call = builder.definitions.get(data)
    if not isinstance(call, relax.Call) or call.op.name != "relax.nn.pad" or str(call.attrs.pad_mode) != "constant":
        return None
    widths = [int(width) for width in call.attrs.pad_width]
    pairs = {axis: (widths[2 * axis], widths[2 * axis + 1]) for axis in range(len(widths) // 2)}
    if any(amount for pair in conv.pad for amount in pair) or min(widths) < 0:
        return None
    if any(amount for axis in conv.order[:2] for amount in pairs[axis]):
        return None
    pad = tuple(pairs[axis] for axis in conv.order[2:])
    changed = Conv(conv.order, conv.out_order, conv.filter_order, conv.strides, conv.dilations, pad, conv.groups)
    return call.args[0], changed, int(float(call.attrs.pad_value))


class _IntegerConv(BlockedConv):
    """An integer convolution being converted to a blocked layout; `fill` is the padding value."""

    def __init__(
        self, builder: LayoutBuilder, conv: Conv, data: Expr, weight: Expr, out_shape: tuple[Index, ...], fill: int
    ) -> None:
        super().__init__(builder, conv, data, weight, out_shape)
        self.operand, self.fill = dtype_of(data), fill

    def build(self) -> Blocked | None:
        if self.conv.groups == self.channels == self.filters and self.conv.groups > 1:
            return self._depthwise()
        groups, merged = self._merged_groups()
        values = merge_groups(self._filter_values(), self.conv.groups, merged) if merged > 1 else self._filter_values()
        plain = self._workload(groups, self._in_lanes(groups), merged)
        work = choose_integer(plain, self.operand, self.fill, values, self.builder.machine)
        if isinstance(work, IntegerWinogradWorkload):
            spread = pack_integer_filter(values, work.block, work.strides[0])
            return self._emit(lambda data, weight, _: conv_winograd_integer(data, weight, work), work, spread)
        packed = pack_filter_groups(values, work.in_block, work.panel, work.group)
        result = self._emit(lambda data, weight, sizes: conv_dot(data, weight, work, sizes), work, packed)
        if not work.shift:
            return result
        sums = values.astype(np.int32).sum(axis=tuple(range(1, values.ndim)), dtype=np.int32)
        return self._plus(result, sums * -work.shift)

    def _depthwise(self) -> Blocked:
        """Subtracts `fill` from every element, so that the padding is zero, and adds it back to the result."""
        work = DepthwiseDotWorkload(**{**vars(self._window()), "dtype": "int32"}, operand=self.operand, fill=self.fill)
        values = self._filter_values()
        packed = pack_depthwise(values.astype(np.int16), work.block)
        result = self._emit(
            lambda data, weight, sizes: conv_compute.conv_depthwise(data, weight, work, sizes),
            work,
            packed,
            reads_half=True,
        )
        if not self.fill:
            return result
        sums = values.astype(np.int32).sum(axis=tuple(range(1, values.ndim)), dtype=np.int32)
        return self._plus(result, sums * self.fill)

    def _plus(self, result: Blocked, channels: np.ndarray) -> Blocked:
        """Add one number per channel."""
        rank = len(self.kernel)
        constant = pack_channels(channels.reshape(1, -1, *[1] * rank), self.builder.lanes)
        total = self.builder.emit(relax.op.add(result.expr, as_constant(constant)), "corrected")
        return Blocked(total, result.shape, result.order)


@handles("relax.quantize", "relax.dequantize")
def quantization(builder: LayoutBuilder, call: Call) -> Blocked | None:
    """Quantize with one scale and one zero point."""
    data = builder.blocked(call.args[0])
    if data is None or dtype_of(call) not in BLOCKABLE or any(rank_of(each) != 0 for each in call.args[1:3]):
        return None
    parameters = [builder.plain(each) for each in call.args[1:3]]
    result = builder.emit(relax.Call(call.op, [data.expr, *parameters], call.attrs, call.ty_args), "quantized")
    return Blocked(result, data.shape, data.order)


@handles("relax.astype")
def conversion(builder: LayoutBuilder, call: Call) -> Blocked | None:
    """Convert between the blockable types."""
    data = builder.blocked(call.args[0])
    if data is None or dtype_of(call) not in BLOCKABLE:
        return None
    return Blocked(builder.emit(relax.op.astype(data.expr, dtype_of(call)), "converted"), data.shape, data.order)
