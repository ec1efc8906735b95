"""The order in which the hardware reads weights, undone: from a decoded stream to an array of filters.

A stream holds the weights in blocks of output channels, then of input channels, then of parts of the kernel, then in
the micro-blocks that the multipliers take at once, with zeros where a block reaches past an edge. See
`weight_encoder` in Vela's sources (Apache-2.0).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

Array = np.ndarray
# Depth of a micro-block of the result, by multiply-adds a cycle of one core; that of the operand is always 8.
_RESULT_DEPTH = {32: 4, 64: 8, 128: 8, 256: 8}
_OPERAND_DEPTH = 8
SUBKERNEL = 8


def decoded(stream: bytes) -> Array:
    """The weights of a compressed stream in the hardware's order: int16."""
    from ethosu import mlw_codec

    return np.asarray(mlw_codec.decode(bytearray(stream)), np.int64)


@dataclass(frozen=True)
class Layout:
    """Parameters that decide the order.

    Attributes:
        shape: (filters, height, width, channels); one channel for a depthwise convolution.
        block_depth: filters of a block.
        part_kernel: whether parts of the kernel come before blocks of channels.
        rows, columns: of a part of the kernel.
    """

    shape: tuple[int, int, int, int]
    block_depth: int
    macs: int
    part_kernel: bool
    depthwise: bool
    rows: int
    columns: int


def filters(stream: Array, layout: Layout) -> Array:
    """Weights of the layout's shape out of a stream."""
    order = _order(layout)
    used = min(len(order), len(stream))
    kept = order[:used] >= 0
    result = np.zeros(int(np.prod(layout.shape)), np.int64)
    result[order[:used][kept]] = stream[:used][kept]
    return result.reshape(layout.shape)


@lru_cache(maxsize=64)
def _order(layout: Layout) -> Array:
    """For each place of the stream, the index of the weight there, or -1 for filling."""
    count, height, width, channels = layout.shape
    depth_step = 16 if layout.part_kernel else 32
    parts = []
    for first in range(0, count, layout.block_depth):
        last = min(first + layout.block_depth, count)
        for channel in range(0, 1 if layout.depthwise else channels, depth_step):
            if layout.depthwise:
                depth = _OPERAND_DEPTH
            elif layout.part_kernel:
                depth = min(depth_step, channels - channel)
            else:
                depth = depth_step
            for y in range(0, height, layout.rows):
                for x in range(0, width, layout.columns):
                    parts.append(_block(layout, (first, last), (channel, depth), (y, x)))
    return np.concatenate(parts)


def _block(layout: Layout, outputs: tuple[int, int], inputs: tuple[int, int], corner: tuple[int, int]) -> Array:
    _, height, width, channels = layout.shape
    rows, columns = min(height - corner[0], layout.rows), min(width - corner[1], layout.columns)
    elements = rows * columns
    if layout.part_kernel or layout.depthwise:
        elements = -(-elements // 4) * 4
    step = _RESULT_DEPTH[layout.macs]
    outer, inner = (inputs[1], 1) if layout.part_kernel else (1, inputs[1])
    grid = np.ix_(
        np.arange(0, outer, _OPERAND_DEPTH),
        np.arange(0, outputs[1] - outputs[0], step),
        np.arange(elements),
        np.arange(0, inner, _OPERAND_DEPTH),
        np.arange(step),
        np.arange(1 if layout.depthwise else _OPERAND_DEPTH),
    )
    outer_channel, block, element, inner_channel, filter_step, channel_step = grid
    channel = inputs[0] + outer_channel + inner_channel + channel_step
    chosen = outputs[0] + block + filter_step
    y, x = corner[0] + element // columns, corner[1] + element % columns
    inside = (channel < channels) & (chosen < outputs[1]) & (element < rows * columns)
    index = ((chosen * height + y) * width + x) * channels + channel
    return np.asarray(np.where(inside, index, -1)).ravel()
