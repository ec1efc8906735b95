"""The taps of a convolution's filter: which outputs each of them reads the input for, and which meet padding alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from compiler.passes.rewriting.constant_products import CONVOLUTIONS
from compiler.passes.rewriting.matching import static_shape

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Call

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
