"""Transposed convolutions as a convolution for each phase of the output, each with the taps and positions that it has.

Output u = s q + r is phase r, of the taps k = b + s j with b = (r + p) mod s, and of the inputs i = q + c - j with
c = (r + p) // s: no product with an inserted zero, nor with one that fills a phase up to the taps of another.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

import schedules.ir.tir  # noqa: F401
from compiler.passes.layout.convolution import BlockedConv, Conv
from compiler.passes.layout.values import Blocked, LayoutBuilder
from compiler.passes.rewriting.matching import as_constant
from schedules.conv.folded import tile_cycles
from schedules.conv.workload import ConvWorkload
from schedules.ir.numbers import ceil_div
from schedules.machine import Machine

from tvm import te, tirx  # isort: skip
from tvm.sym import Analyzer  # isort: skip
from schedules.ir.tvm_types import Expr, Index, Tensor

MOST_PHASES = 16
"""Each is a kernel that is compiled, called, and reads the input once more."""
_CALL_SECONDS, _CYCLES_A_SECOND = 2e-6, 3e9
Array = np.ndarray


@dataclass(frozen=True)
class Phase:
    """One phase of one spatial dimension: `positions` outputs, of the kernel's taps `first`, `first` + stride, ...,
    and `pad` (before, after) zeros around the input."""

    first: int
    taps: int
    positions: Index
    pad: tuple[int, int]

    @classmethod
    def of(cls, number: int, size: Index, out: Index, kernel: int, stride: int, before: int) -> Phase | None:
        """None for one without taps or outputs, and where the padding cuts off whole inputs.

        Symbolic sizes need an output for every input but one at least, and that their number is known beyond those.
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
    """The convolutions of one transposed convolution; `phases` by spatial dimension."""

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
        """None where one of the phases has no outputs or taps, or there are too many of them.

        Args:
            shape, out_shape: (batch, channels, *spatial).
            before: the padding in front, by spatial dimension.
        """
        if np.prod(strides) > MOST_PHASES:
            return None
        rows = zip(shape[2:], out_shape[2:], kernel, strides, before, strict=True)
        found = [[Phase.of(number, *row) for number in range(row[3])] for row in rows]
        known = tuple(tuple(each for each in row if each is not None) for row in found)
        if [len(row) for row in known] != list(strides):
            return None
        return cls(known, groups, tuple(out_shape))

    def __iter__(self) -> Iterator[tuple[Phase, ...]]:
        """The phases of all dimensions, the last one fastest."""
        return itertools.product(*self.phases)

    def cycles(self, merged: ConvWorkload, machine: Machine) -> float:
        """Estimated cycles of a core for one image, beside those of one convolution for all phases."""
        filters = merged.filters // len(list(self))
        calls = _CALL_SECONDS * _CYCLES_A_SECOND
        return sum(tile_cycles(_part(merged, filters, phases), machine) + calls for phases in self) - calls

    def emit(self, builder: LayoutBuilder, data: Expr, weight: Array) -> Blocked:
        """The calls, of the weight (i, o / groups, *kernel)."""
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
            lambda *values: _interleave(values, shape, strides, builder.lanes), *parts, name="interleave"
        )
        return Blocked(result, self.out_shape, order)


def _constant(size: Index) -> int | None:
    """A size that is known, perhaps once simplified."""
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


def _interleave(parts: Sequence[Tensor], shape: Sequence[Index], strides: Sequence[int], lanes: int) -> Tensor:
    """The output out of the phases' results, which the last dimension's phase tells apart fastest."""

    def point(image: Expr, block: Expr, *rest: Expr) -> Expr:
        number: Index = 0
        for at, stride in zip(rest[:-1], strides, strict=True):
            number = number * stride + at % stride
        places = [at // stride for at, stride in zip(rest[:-1], strides, strict=True)]
        value = parts[-1](image, block, *places, rest[-1])
        for index in reversed(range(len(parts) - 1)):
            other = parts[index](image, block, *places, rest[-1])
            value = tirx.if_then_else(number == index, other, value)
        return value

    return te.compute((*shape, lanes), point, name="interleave")
