"""Transposed convolutions as stride-1 convolutions, one per phase of the output, with interleaved results.

Output position u reads x[i] w[k] for i s + k - p = u. With u + p = s a + b, this means k = b + s j, i = a - j: each
phase b is a convolution over j, with the taps b, b + s, ... of the kernel and no multiplications by inserted zeros. The
phases are either filters of one convolution, over all positions a and taps j of any phase, or separate convolutions
(`phase_convolutions`), whichever is estimated to be faster. In the latter, output u = s q + r is phase r, with the taps
k = b + s j for b = (r + p) mod s, and the inputs i = q + c - j for c = (r + p) // s: no multiplications by inserted
zeros, nor by zeros that pad a phase to the number of taps of another.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from tvm import te
from tvm.ir import GenericConst

import schedules.ir.tir  # noqa: F401
from compiler.passes.layout.convolution import BlockedConv, Conv
from compiler.passes.layout.values import Blocked, LayoutBuilder, Order, can_block, handles, pack_filter
from compiler.passes.rewriting.matching import array_of, as_constant, is_one, shape_of
from schedules.annotations import FUSABLE
from schedules.conv import compute as conv_compute
from schedules.conv.folded import tile_cycles
from schedules.conv.workload import ConvWorkload
from schedules.ir.numbers import ceil_div
from schedules.ir.tvm_types import Call, Expr, Index, Tensor
from schedules.machine import Machine

from tvm import tirx  # isort: skip
from tvm.sym import Analyzer  # isort: skip

Array = np.ndarray


@dataclass(frozen=True)
class Phases:
    """One spatial dimension: output u is phase (u + start) % stride of position (u + start) // stride.

    There are `positions`, each a sum over `taps` inputs, with `pad` (before, after) zeros around them.
    """

    stride: int
    taps: int
    start: int
    positions: int
    pad: tuple[int, int]

    @classmethod
    def of(cls, size: int, out: int, kernel: int, stride: int, before: int) -> Phases | None:
        taps = ceil_div(kernel, stride)
        first, last = before // stride, (out + before - 1) // stride
        if first > taps - 1:
            return None  # the padding crops whole inputs
        return cls(stride, taps, before - first * stride, last - first + 1, (taps - 1 - first, last - (size - 1)))


@handles("relax.nn.conv1d_transpose", "relax.nn.conv2d_transpose", "relax.nn.conv3d_transpose")
def transposed_convolution(builder: LayoutBuilder, call: Call) -> Blocked | None:
    attrs = call.attrs
    rank = len(attrs.strides)
    spatial = "DHW"[-rank:]
    order = tuple(range(rank + 2))
    layouts = str(attrs.data_layout), str(attrs.kernel_layout), str(attrs.out_layout) or str(attrs.data_layout)
    if layouts != (f"NC{spatial}", f"IO{spatial}", f"NC{spatial}"):
        return None
    data, weight = call.args
    weight = builder.plain(weight)
    if not isinstance(weight, GenericConst) or not can_block(data, order) or not can_block(call, order):
        return None
    shape, out_shape = shape_of(data) or [], shape_of(call) or []
    groups = int(attrs.groups)
    values = _dilated(array_of(weight), [int(each) for each in attrs.dilation])
    # With one input, each output has one tap for any stride.
    sizes = zip(attrs.strides, values.shape[2:], shape[2:], strict=True)
    strides = [max(int(stride), taps) if is_one(size) else int(stride) for stride, taps, size in sizes]
    pads_before = [int(each) for each in attrs.padding[:rank]]
    several = PhaseConvolutions.of(shape, out_shape, values.shape[2:], strides, pads_before, groups)
    known = all(isinstance(size, int) for size in (*shape[2:], *out_shape[2:]))
    if not known:
        return None if several is None else several.emit(builder, data, values)
    phases = [
        Phases.of(shape[2 + i], out_shape[2 + i], values.shape[2 + i], strides[i], pads_before[i]) for i in range(rank)
    ]
    found = [each for each in phases if each is not None]
    merged = _Merged(builder, data, found, tuple(out_shape), groups * values.shape[1]) if len(found) == rank else None
    if any(size % stride for size, stride in zip(values.shape[2:], strides, strict=True)):
        merged = None  # zeros in phases with fewer taps would spread NaN to neighboring outputs
    if several is not None and (
        merged is None
        or groups > 1
        or several.cycles(merged.work, builder.machine) < tile_cycles(merged.work, builder.machine)
    ):
        return several.emit(builder, data, values)
    return None if merged is None else merged.emit(_dense(values, groups))


def _dense(weight: Array, groups: int) -> Array:
    """(i, o / groups, *kernel) -> (i, o, *kernel), with zeros between the groups."""
    if groups == 1:
        return weight
    channels, per_group = weight.shape[:2]
    result = np.zeros((channels, per_group * groups, *weight.shape[2:]), weight.dtype)
    size = channels // groups
    for group in range(groups):
        rows = slice(group * size, (group + 1) * size)
        result[rows, group * per_group : (group + 1) * per_group] = weight[rows]
    return result


def _dilated(weight: Array, dilations: list[int]) -> Array:
    """Insert zeros between the taps."""
    if all(each == 1 for each in dilations):
        return weight
    sizes = [(size - 1) * step + 1 for size, step in zip(weight.shape[2:], dilations, strict=True)]
    result = np.zeros((*weight.shape[:2], *sizes), weight.dtype)
    result[(slice(None), slice(None), *(slice(None, None, step) for step in dilations))] = weight
    return result


def phase_filters(weight: Array, phases: list[Phases]) -> Array:
    """(i, o, *kernel) -> (phases * o, i, *taps): the phases' filters concatenated."""
    extents = [phase.taps * phase.stride for phase in phases]
    ends = [(0, extent - size) for extent, size in zip(extents, weight.shape[2:], strict=True)]
    padded = np.pad(weight, [(0, 0), (0, 0), *ends])
    parts = []
    for starts in itertools.product(*(range(phase.stride) for phase in phases)):
        taps = tuple(slice(start, None, phase.stride) for start, phase in zip(starts, phases, strict=True))
        part = padded[(slice(None), slice(None), *taps)]
        parts.append(np.flip(part, axis=tuple(range(2, part.ndim))).swapaxes(0, 1))
    return np.ascontiguousarray(np.concatenate(parts))


class _Merged:
    """One convolution that computes all phases, with `filters` filters each."""

    def __init__(
        self, builder: LayoutBuilder, data: Expr, phases: list[Phases], out_shape: tuple[Index, ...], filters: int
    ) -> None:
        self.builder, self.data, self.phases, self.out_shape = builder, data, phases, out_shape
        self.order: Order = tuple(range(len(phases) + 2))
        shape = shape_of(data) or []
        lanes, ones = builder.lanes, (1,) * len(phases)
        few = shape[1] * 2 <= lanes and builder.blocked(data, self.order) is None
        self.work = ConvWorkload(
            batch=shape[0] if isinstance(shape[0], int) else 0,
            channels=shape[1],
            block=lanes,
            spatial=tuple(shape[2:]),
            kernel=tuple(phase.taps for phase in phases),
            strides=ones,
            dilations=ones,
            pad=tuple(phase.pad for phase in phases),
            dtype="float32",
            filters=filters * int(np.prod([phase.stride for phase in phases])),
            groups=1,
            in_block=1 if few else lanes,
        )

    def emit(self, weight: Array) -> Blocked:
        """Emit the calls for the dense weight (i, o, *kernel)."""
        builder, work = self.builder, self.work
        source = builder.plain(self.data) if work.in_block == 1 else builder.as_blocked(self.data, self.order).expr
        packed = as_constant(pack_filter(phase_filters(weight, self.phases), work.in_block, work.block))
        parts = builder.emit_kernel(
            lambda values, kernel: conv_compute.conv_direct(values, kernel, work),
            source,
            packed,
            name=f"conv{work.rank}d_transpose",
            pattern=FUSABLE,
        )
        result = builder.emit_kernel(
            lambda values: _interleave(values, self.phases, self.out_shape, weight.shape[1]), parts, name="interleave"
        )
        return Blocked(result, self.out_shape, self.order)


def _interleave(parts: Tensor, phases: list[Phases], out_shape: tuple[Index, ...], filters: int) -> Tensor:
    """Interleave the phases' results into the output."""
    lanes = int(parts.shape[-1])
    blocks = ceil_div(filters, lanes)

    def point(image: Expr, block: Expr, *rest: Expr) -> Expr:
        number: Index = 0
        positions = []
        for at, phase in zip(rest[:-1], phases, strict=True):
            shifted = at + phase.start
            number = number * phase.stride + shifted % phase.stride
            positions.append(shifted // phase.stride)
        if filters % lanes == 0:
            return parts(image, number * blocks + block, *positions, rest[-1])
        # The lanes after the last channel of the last phase have no source and are unspecified.
        last = int(parts.shape[1]) * lanes - 1
        channel = te.min(number * filters + block * lanes + rest[-1], last)
        return parts(image, channel // lanes, *positions, channel % lanes)

    return te.compute((parts.shape[0], blocks, *out_shape[2:], lanes), point, name="interleave")


MAX_PHASES = 16
"""Each phase is a kernel to compile and call, which reads the input once more."""
_CALL_SECONDS, _CYCLES_A_SECOND = 2e-6, 3e9


@dataclass(frozen=True)
class Phase:
    """One phase of a spatial dimension: `positions` outputs, of the kernel's taps `first`, `first` + stride, ..., with
    `pad` (before, after) zeros around the input."""

    first: int
    taps: int
    positions: Index
    pad: tuple[int, int]

    @classmethod
    def of(cls, number: int, size: Index, out: Index, kernel: int, stride: int, before: int) -> Phase | None:
        """Return the phase; None if it has no taps or outputs, or the padding crops whole inputs.

        Symbolic sizes need at least one output for every input but one, and a known number of outputs beyond those.
        """
        beyond = _constant(out - size * stride)
        if beyond is None:
            return None
        first, shift = (number + before) % stride, (number + before) // stride
        taps, more = ceil_div(kernel - first, stride), ceil_div(beyond - number, stride)
        pad = taps - 1 - shift, more + shift
        enough = size + more >= 1 if isinstance(size, int) else more >= -1
        return None if taps < 1 or not enough or min(pad) < 0 else cls(first, taps, size + more, pad)


@dataclass(frozen=True)
class PhaseConvolutions:
    """The convolutions that make up a transposed one; `phases` by spatial dimension."""

    phases: tuple[tuple[Phase, ...], ...]
    groups: int
    out_shape: tuple[Index, ...]

    @classmethod
    def of(
        cls,
        shape: Sequence[Index],
        out_shape: Sequence[Index],
        kernel: Sequence[int],
        strides: Sequence[int],
        before: Sequence[int],
        groups: int,
    ) -> PhaseConvolutions | None:
        """Return the convolutions; None if a phase has no outputs or taps, or there are too many phases.

        Args:
            shape, out_shape: (batch, channels, *spatial).
            before: the leading padding, by spatial dimension.
        """
        if np.prod(strides) > MAX_PHASES:
            return None
        rows = zip(shape[2:], out_shape[2:], kernel, strides, before, strict=True)
        found = [[Phase.of(number, *row) for number in range(row[3])] for row in rows]
        known = tuple(tuple(each for each in row if each is not None) for row in found)
        if [len(row) for row in known] != list(strides):
            return None
        return cls(known, groups, tuple(out_shape))

    def __iter__(self) -> Iterator[tuple[Phase, ...]]:
        """Iterate over combinations of phases, the last dimension fastest."""
        return itertools.product(*self.phases)

    def cycles(self, merged: ConvWorkload, machine: Machine) -> float:
        """Estimate the cycles of a core per image, in excess of those of one convolution for all phases."""
        filters = merged.filters // len(list(self))
        calls = _CALL_SECONDS * _CYCLES_A_SECOND
        return sum(tile_cycles(_part(merged, filters, phases), machine) + calls for phases in self) - calls

    def emit(self, builder: LayoutBuilder, data: Expr, weight: Array) -> Blocked:
        """Emit the calls for the weight (i, o / groups, *kernel)."""
        order = tuple(range(len(self.out_shape)))
        strides = [len(row) for row in self.phases]
        parts = []
        for phases in self:
            filters = _filters(weight, phases, strides, self.groups)
            shape = (self.out_shape[0], filters.shape[0], *(each.positions for each in phases))
            ones = (1,) * len(phases)
            conv = Conv(order, order, order, ones, ones, tuple(each.pad for each in phases), self.groups)
            part = BlockedConv(builder, conv, data, as_constant(filters), shape).build()
            assert part is not None, "a convolution of known weights goes into blocks"
            blocked = part if isinstance(part, Blocked) else builder.as_blocked(part.plain, order)
            parts.append(blocked.expr)
        shape = (*parts[0].ty.shape.values[:2], *self.out_shape[2:])
        result = builder.emit_kernel(
            lambda *values: _interleave_parts(values, shape, strides, builder.lanes), *parts, name="interleave"
        )
        return Blocked(result, self.out_shape, order)


def _constant(size: Index) -> int | None:
    """Return a size that is known, if necessary after simplification."""
    known = size if isinstance(size, int) else Analyzer().simplify(size)
    return known if isinstance(known, int) else int(known) if isinstance(known, tirx.IntImm) else None


def _part(merged: ConvWorkload, filters: int, phases: Sequence[Phase]) -> ConvWorkload:
    taps, pad = tuple(each.taps for each in phases), tuple(each.pad for each in phases)
    return replace(merged, filters=filters, kernel=taps, pad=pad)


def _filters(weight: Array, phases: Sequence[Phase], strides: Sequence[int], groups: int) -> Array:
    """(i, o / groups, *kernel) -> (o, i / groups, *taps) of one phase."""
    taps = tuple(slice(each.first, None, stride) for each, stride in zip(phases, strides, strict=True))
    part = weight[(slice(None), slice(None), *taps)]
    part = np.flip(part, axis=tuple(range(2, part.ndim)))
    grouped = part.reshape(groups, -1, *part.shape[1:]).swapaxes(1, 2)
    return np.ascontiguousarray(grouped.reshape(-1, *grouped.shape[2:]))


def _interleave_parts(parts: Sequence[Tensor], shape: Sequence[Index], strides: Sequence[int], lanes: int) -> Tensor:
    """Interleave the phases' results into the output; the last dimension's phase varies fastest."""

    def point(image: Expr, block: Expr, *rest: Expr) -> Expr:
        number: Index = 0
        for at, stride in zip(rest[:-1], strides, strict=True):
            number = number * stride + at % stride
        positions = [at // stride for at, stride in zip(rest[:-1], strides, strict=True)]
        value = parts[-1](image, block, *positions, rest[-1])
        for index in reversed(range(len(parts) - 1)):
            other = parts[index](image, block, *positions, rest[-1])
            value = tirx.if_then_else(number == index, other, value)
        return value

    return te.compute((*shape, lanes), point, name="interleave")
