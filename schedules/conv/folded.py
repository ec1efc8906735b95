"""Direct convolution that treats neighboring outputs of a row as additional filters, for fewer filters than lanes.

With 16 lanes and 8 filters, half of each multiply-add would be wasted. Instead, two neighbors of a row become 16
filters of a convolution with twice the stride: the second one's filter is the first one's shifted by a stride. The
window gets wider: `fold` outputs of K taps cost K + (fold - 1) * stride taps instead of fold * K. Results are stored
in the plain layout, where the neighbors of one channel are also adjacent in memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from math import prod
from typing import ClassVar

import numpy as np

from schedules.codegen.nest import load, name_opaque, repeat, sequence, vectorized, when
from schedules.config import Config
from schedules.conv.compute import Windows
from schedules.conv.direct import DirectRule, direct_estimate
from schedules.conv.direct_nest import DirectNest
from schedules.conv.tiling import Sizes, Task, row_cost
from schedules.conv.workload import ConvWorkload
from schedules.estimate import Estimate
from schedules.ir.numbers import ceil_div
from schedules.ir.stages import shape_of
from schedules.ir.tir import Buffer, Expr, Index, Stmt, Tensor, te, tirx
from schedules.machine import Machine
from schedules.stages.fused_kernel import FusedKernel

FOLDED = "conv-folded"
_STORE_CYCLES = 6  # per epilogue and store


@dataclasses.dataclass(frozen=True)
class FoldedWorkload(ConvWorkload):
    """A convolution that computes `fold` neighbors along the last dimension as one output of `fold` x `outputs`
    filters: filter f of neighbour p becomes filter f * fold + p. All other fields are those of the folded convolution.

    Output: plain, its axes in the order `axes` (the logical axis of the batch, the channels, and each spatial
    dimension); the last spatial dimension has `width` elements (0 if dynamic), the channels are `outputs`.
    """

    fold: int = 1
    outputs: int = 1
    width: int = 1
    axes: tuple[int, ...] = ()

    def indices(self, image: Index, channel: Index, spatial: Sequence[Index]) -> list[Index]:
        """The indices of an output element."""
        result: list[Expr | None] = [None] * len(self.axes)
        for axis, value in zip(self.axes, [image, channel, *spatial], strict=True):
            result[axis] = value
        return result


def folded_workload(
    work: ConvWorkload, machine: Machine, axes: Sequence[int], images: Sequence[tuple[int, ...]] = ()
) -> FoldedWorkload | None:
    """The cheapest folding of an ungrouped convolution, or None. `images` are spatial sizes to estimate with if the
    convolution's are dynamic."""
    stride, dilation = work.strides[-1], work.dilations[-1]
    if work.groups > 1 or work.filters >= 2 * work.block or stride % dilation or work.same:
        return None
    cases = [dataclasses.replace(work, spatial=size) for size in images or [work.spatial]]
    width = min(case.out_spatial[-1] for case in cases)
    folds = [
        fold
        for fold in range(2, min(work.block, width) + 1)
        if work.filters * fold <= work.block or work.block % fold == 0
    ]

    def cycles(fold: int) -> float:
        return sum(tile_cycles(_folded(case, fold, tuple(axes)), machine) for case in cases)

    best = min(folds, key=cycles, default=None)
    return None if best is None else _folded(work, best, tuple(axes))


def _folded(work: ConvWorkload, fold: int, axes: tuple[int, ...]) -> FoldedWorkload:
    stride, dilation = work.strides[-1], work.dilations[-1]
    width = work.out_spatial[-1]
    taps = work.kernel[-1] + (fold - 1) * stride // dilation
    pad_before, pad_after = work.pad[-1]
    if width:
        reach = (ceil_div(width, fold) - 1) * stride * fold + (taps - 1) * dilation + 1
        pad_after = max(0, reach - pad_before - work.spatial[-1])
    else:
        pad_after = max(0, pad_after) + (fold - 1) * stride
    fields = {
        **vars(work),
        "filters": work.filters * fold,
        "kernel": (*work.kernel[:-1], taps),
        "strides": (*work.strides[:-1], stride * fold),
        "pad": (*work.pad[:-1], (pad_before, pad_after)),
    }
    return FoldedWorkload(**fields, fold=fold, outputs=work.filters, width=width, axes=axes)


def tile_cycles(work: ConvWorkload, machine: Machine) -> float:
    """Estimated single-core cycles of a direct convolution of one image, with weights in cache."""
    width = work.out_spatial[-1]
    rows = work.out_blocks * work.group_channels * prod((*work.kernel, *work.out_spatial[:-1]))
    maximum = min(width, machine.vector_registers - 4)
    row = min(row_cost(machine, width, pixels, 1) for pixels in range(1, maximum + 1))
    stores = work.out_blocks * prod(work.out_spatial)
    if isinstance(work, FoldedWorkload):
        stores *= min(work.outputs, work.block // work.fold)
    return (rows * row + stores * _STORE_CYCLES) / machine.cores


def fold_filter(values: np.ndarray, work: FoldedWorkload) -> np.ndarray:
    """(outputs, channels, *kernel) -> (outputs * fold, channels, *folded kernel), zero-padded."""
    result = np.zeros((work.filters, *values.shape[1:-1], work.kernel[-1]), values.dtype)
    taps = values.shape[-1]
    step = work.strides[-1] // work.fold // work.dilations[-1]
    for neighbour in range(work.fold):
        start = neighbour * step
        result[neighbour :: work.fold, ..., start : start + taps] = values
    return result


def conv_folded(data: Tensor, weight: Tensor, work: FoldedWorkload, sizes: Sequence[Index] = ()) -> Tensor:
    """The convolution as a tensor expression; `weight` comes from `fold_filter`, packed as for a direct convolution.
    `sizes` are the output's spatial sizes; needed if the workload leaves some dynamic."""
    zero = tirx.const(0, work.dtype)
    channel = te.reduce_axis((0, work.channels), name="ci")
    windows = Windows(work, data)

    def point(*indices: Expr) -> Expr:
        image, output, *spatial = (indices[axis] for axis in work.axes)
        neighbour = spatial[-1] % work.fold
        spatial[-1] = spatial[-1] // work.fold
        block, lane = channel // work.in_block, channel % work.in_block
        lanes = (lane,) if work.in_block > 1 else ()
        value = windows.value(spatial, windows.axes, lambda at: data[(image, block, *at, *lanes)], zero)
        folded = output * work.fold + neighbour
        factor = weight[(folded // work.block, block, *windows.axes, lane, folded % work.block)]
        return te.sum(value * factor, axis=[channel, *windows.axes])

    known = (*work.out_spatial[:-1], work.width)
    out = [size or given for size, given in zip(known, sizes or known, strict=True)]
    shape = work.indices(data.shape[0], work.outputs, out)
    return te.compute(shape, point, name="conv", attrs=work.annotation(FOLDED))


class ConvFolded(DirectRule[FoldedWorkload]):
    """Serves `conv_folded` kernels. The knobs are those of the direct convolution, with pixels and columns counted in
    folds."""

    name: ClassVar[str] = FOLDED
    keeps_loops: ClassVar[bool] = True

    def estimate(self, workload: FoldedWorkload, config: Config, machine: Machine) -> Estimate | None:
        return direct_estimate(workload, config, machine)

    def nest(self, fused: FusedKernel, workload: FoldedWorkload, config: Config, machine: Machine) -> FoldedNest:
        return FoldedNest(fused, workload, config)


class FoldedNest(DirectNest):
    """The direct nest, each register of sums stored channel by channel."""

    work: FoldedWorkload

    def _sizes_of(self, fused: FusedKernel) -> Sizes:
        work, shape = self.work, shape_of(fused.result)
        outer, names = [shape[axis] for axis in work.axes[2:]], list[Stmt]()
        self._width = work.width or name_opaque("width", outer[-1], names)
        self._whole = name_opaque("whole", self._width // work.fold, names)  # folds without the last, shorter one
        folded = Sizes.of(work, self.data, [*outer[:-1], ceil_div(self._width, work.fold)])
        return dataclasses.replace(folded, bindings=(*names, *folded.bindings))

    def _finish(
        self, sums: list[Buffer], task: Task, block: Expr | int, start: Sequence[Index], pixel: Index, part: int
    ) -> Stmt:
        work = self.work
        coordinates = [first + inner for first, inner in zip(task.corner, start, strict=True)]
        left = (coordinates[-1] + pixel) * work.fold
        # Each of several blocks holds whole channels; a single block may end with unused lanes.
        channels = min(work.outputs, work.block // work.fold)
        first_channel = (block + part) * channels

        def element(channel: int, lane: Expr | int) -> Stmt:
            indices = work.indices(task.image, first_channel + channel, [*coordinates[:-1], left + lane])
            return self.fused.finish(load(sums, pixel, part, channel * work.fold + lane), indices)

        def channel_of(channel: int) -> Stmt | None:
            vector = vectorized("lane", work.fold, lambda lane: element(channel, lane))
            if not work.width:
                some: Stmt | None = repeat("lane", self._width - left, lambda lane: element(channel, lane))
            else:
                rest = work.width % work.fold
                some = sequence(*(element(channel, lane) for lane in range(rest))) if rest else None
            # Not as `left + fold <= width`: inside the tile's own bound TVM's simplifier would not terminate.
            whole = coordinates[-1] + pixel < self._whole
            stored = vector if some is None else when(whole, vector, some)
            return when(first_channel + channel < work.outputs, stored) if work.outputs % channels else stored

        return sequence(*(channel_of(channel) for channel in range(channels)))
