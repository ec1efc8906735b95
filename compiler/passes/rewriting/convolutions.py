"""Transposed convolutions as plain convolutions with one filter per phase, whose results are interleaved.

A transposed convolution adds x[i] w[k] at place i s + k. With k = s j + r, place s q + r gets the sum over j of
x[q - j] w[s j + r]: for each phase r a convolution over j with the kernel turned around. One convolution computes all
phases as filters of its own (kernels are filled up to a multiple of s), its results are interleaved, and `padding` is
cut off.

The taps of a convolution's filter: which outputs each of them reads the input for, and which meet padding alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tvm import relax

from compiler.passes.rewriting.constant_products import CONVOLUTIONS
from compiler.passes.rewriting.graph import Call, Expr
from compiler.passes.rewriting.matching import Array, static_shape

Emit = Callable[[Expr], Expr]


@dataclass(frozen=True)
class Interleaved:
    """One transposed convolution.

    Attributes:
        strides: of it, which are the phases of the plain one.
        taps: of the plain one's kernel, by dimension.
        start, size: what is cut out of the interleaved results, by dimension.
        filters, groups: of the transposed one.
    """

    strides: tuple[int, ...]
    taps: tuple[int, ...]
    start: tuple[int, ...]
    size: tuple[int, ...]
    filters: int
    groups: int

    @classmethod
    def of(cls, call: Call) -> Interleaved | None:
        """None for dynamic sizes, dilated kernels, or layouts other than ONNX's."""
        attrs = call.attrs
        rank = len(attrs.strides)
        spatial = "DHW"[-rank:]
        layouts = str(attrs.data_layout), str(attrs.kernel_layout), str(attrs.out_layout) or f"NC{spatial}"
        shapes = [static_shape(each) for each in (call.args[0], call.args[1], call)]
        if layouts != (f"NC{spatial}", f"IO{spatial}", f"NC{spatial}") or any(each is None for each in shapes):
            return None
        data, weight, out = (tuple(each or ()) for each in shapes)
        if any(int(each) != 1 for each in attrs.dilation) or 0 in (*data, *out):
            return None
        strides, groups = tuple(int(each) for each in attrs.strides), int(attrs.groups)
        start = tuple(int(each) for each in attrs.padding[:rank])
        # What lies behind the last product is summed up of nothing: a further tap of zeros makes it.
        ends = [first + length for first, length in zip(start, out[2:], strict=True)]
        taps = tuple(
            max(-(-kernel // stride), -(-end // stride) - extent + 1)
            for kernel, stride, end, extent in zip(weight[2:], strides, ends, data[2:], strict=True)
        )
        return cls(strides, taps, start, tuple(out[2:]), weight[1] * groups, groups)

    @property
    def phases(self) -> int:
        return int(np.prod(self.strides))

    def kernels(self, weight: Array, fill: int = 0) -> Array:
        """(in, filters / groups, *kernel) -> (filters * phases, in / groups, *taps); `fill` stands for zero."""
        rank = len(self.strides)
        grouped = weight.reshape(self.groups, -1, *weight.shape[1:]).swapaxes(1, 2)
        flat = grouped.reshape(self.filters, -1, *weight.shape[2:])
        ends = [
            tap * stride - size for tap, stride, size in zip(self.taps, self.strides, weight.shape[2:], strict=True)
        ]
        full = np.pad(flat, [(0, 0), (0, 0), *((0, end) for end in ends)], constant_values=fill)
        parts = [each for pair in zip(self.taps, self.strides, strict=True) for each in pair]
        split = full.reshape(*flat.shape[:2], *parts)
        phases = [3 + 2 * axis for axis in range(rank)]
        ordered = split.transpose(0, *phases, 1, *(each - 1 for each in phases))
        turned = np.flip(ordered, tuple(range(rank + 2, 2 * rank + 2)))
        return np.ascontiguousarray(turned.reshape(self.filters * self.phases, -1, *self.taps))

    def repeated(self, values: Array) -> Array:
        """One number per filter, repeated for each of its phases."""
        return np.repeat(values.reshape(-1), self.phases)

    def convolution(self, data: Expr, kernels: Expr, out_dtype: str) -> Expr:
        """The plain convolution."""
        rank = len(self.strides)
        return getattr(relax.op.nn, f"conv{rank}d")(
            data, kernels, padding=[tap - 1 for tap in self.taps] * 2, groups=self.groups, out_dtype=out_dtype
        )

    def interleave(self, phases: Expr, emit: Emit) -> Expr:
        """Its results (batch, filters * phases, *places) in their places."""
        batch, _, *places = static_shape(phases) or ()
        rank = len(places)
        split = emit(relax.op.reshape(phases, (batch, self.filters, *self.strides, *places)))
        order = [0, 1, *(axis for each in range(rank) for axis in (2 + rank + each, 2 + each))]
        whole = [index * stride for index, stride in zip(places, self.strides, strict=True)]
        joined = emit(relax.op.reshape(emit(relax.op.permute_dims(split, order)), (batch, self.filters, *whole)))
        ends = [first + size for first, size in zip(self.start, self.size, strict=True)]
        if list(self.start) == [0] * rank and ends == whole:
            return joined
        return relax.op.strided_slice(joined, list(range(2, 2 + rank)), list(self.start), ends)


PLAIN_CONVOLUTIONS = tuple(name for name in CONVOLUTIONS if not name.endswith("_transpose"))


@dataclass(frozen=True)
class Tap:
    """One position of the filter along an axis: it reads the input for outputs `first` to `last` - 1 only.

    `start` is the place in the input that it reads for output `first`.
    """

    index: int
    first: int
    last: int
    start: int

    @property
    def outputs(self) -> int:
        return max(0, self.last - self.first)


@dataclass(frozen=True)
class Window:
    """Window of a convolution along one spatial axis, sizes known."""

    size: int
    out: int
    taps: int
    stride: int
    dilation: int
    before: int
    after: int

    def tap(self, index: int) -> Tap:
        """The outputs o with 0 <= o * stride + index * dilation - before < size."""
        offset = index * self.dilation - self.before
        first = max(0, -(offset // self.stride))
        last = min(self.out, -((offset - self.size) // self.stride))
        return Tap(index, first, last, first * self.stride + offset)

    @property
    def met(self) -> list[Tap]:
        """The taps that meet the input at all."""
        return [tap for tap in map(self.tap, range(self.taps)) if tap.outputs]


def windows_of(call: Call) -> list[Window] | None:
    """A window for each spatial axis, of a convolution of known sizes in the layouts NC... and OI...; else None."""
    attrs = call.attrs
    rank = len(attrs.strides)
    spatial = "DHW"[-rank:]
    layouts = str(attrs.data_layout), str(attrs.kernel_layout), str(attrs.out_layout) or str(attrs.data_layout)
    shapes = [static_shape(each) for each in (call.args[0], call.args[1], call)]
    if layouts != (f"NC{spatial}", f"OI{spatial}", f"NC{spatial}") or any(shape is None for shape in shapes):
        return None
    data, weight, out = (list(shape or ())[2:] for shape in shapes)
    return [
        Window(
            data[axis],
            out[axis],
            weight[axis],
            int(attrs.strides[axis]),
            int(attrs.dilation[axis]),
            int(attrs.padding[axis]),
            int(attrs.padding[axis + rank]),
        )
        for axis in range(rank)
    ]
