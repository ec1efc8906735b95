"""split-dilated: compute a dilated convolution as a sum over its taps, each on the input it overlaps.

conv(x, w, dilation) => pad(conv(slice(x), w[..., 0])) + pad(conv(slice(x), w[..., 1])) + ...

The direct schedule copies the rows that a task reads, with their padding; distant rows of many channels exceed the
cache, and most multiplications may be by padding. In either case 1x1 convolutions are faster, provided that there are
enough channels to pay for the additions (DeepLab: 960 channels of 16x16, dilation 12).
"""

from __future__ import annotations

from itertools import product
from math import prod

from tvm import relax
from tvm.ir import IRModule

from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.constant_products import PLAIN_CONVOLUTIONS, Tap, Window, windows_of
from compiler.passes.rewriting.graph import Call, Expr, Graph, RuleTable
from compiler.passes.rewriting.matching import Array, as_constant, constant_array, dtype_of, shape_of

_FEWEST_CHANNELS = 128  # 2 * 128 operations outweigh reading and writing a sum
_MAX_TAPS = 27
_MOSTLY_PADDING = 0.5  # minimum share of multiplications that overlap the input


@graph_pass(
    "split-dilated", summary="Compute widely dilated convolutions tap by tap, without their padding", only="processor"
)
def split_dilated(mod: IRModule, context: PipelineContext) -> IRModule:
    """See the equation in the module docstring."""
    if context.machine is None:
        return mod
    room = context.machine.l2_bytes // 2
    rules = RuleTable()
    rules.on(*PLAIN_CONVOLUTIONS)(lambda graph, call: _split(graph, call, room))
    return rules.apply(mod)


def _split(graph: Graph, call: Call, room: int) -> Expr | None:
    windows = windows_of(call)
    weight = constant_array(graph, call.args[1])
    if windows is None or weight is None or int(call.attrs.groups) != 1 or dtype_of(call) != "float32":
        return None
    if dtype_of(call.args[0]) != "float32" or all(window.dilation == 1 for window in windows):
        return None
    met = [window.met for window in windows]
    channels = weight.shape[1]
    if channels < _FEWEST_CHANNELS or not 1 < prod(map(len, met)) <= _MAX_TAPS:
        return None
    share = prod(
        sum(tap.outputs for tap in taps) / (window.taps * window.out) for taps, window in zip(met, windows, strict=True)
    )
    if share > _MOSTLY_PADDING and channels * 4 * _reach(windows) <= room:
        return None
    total: Expr | None = None
    for taps in sorted(product(*met), key=lambda taps: -prod(tap.outputs for tap in taps)):
        part = graph.emit(_tap(graph, call, weight, windows, taps))
        total = part if total is None else graph.emit(relax.op.add(total, part))
    return total


def _reach(windows: list[Window]) -> int:
    """Return the elements of a channel that one output row reads, padding included."""
    *outer, last = windows
    row = (last.out - 1) * last.stride + (last.taps - 1) * last.dilation + 1
    return row * prod((window.taps - 1) * window.dilation + 1 for window in outer)


def _tap(graph: Graph, call: Call, weight: Array, windows: list[Window], taps: tuple[Tap, ...]) -> Expr:
    """Return the contribution of one tap to the result, zero where it overlaps padding."""
    axes = [2 + axis for axis in range(len(windows))]
    starts = [tap.start for tap in taps]
    stops = [tap.start + (tap.outputs - 1) * window.stride + 1 for tap, window in zip(taps, windows, strict=True)]
    data = call.args[0]
    if [stop - start for start, stop in zip(starts, stops, strict=True)] != (shape_of(data) or [])[2:]:
        data = graph.emit(relax.op.strided_slice(data, axes, starts, stops))
    filter_tap = weight[(slice(None), slice(None), *(slice(tap.index, tap.index + 1) for tap in taps))]
    attrs = call.attrs
    function = getattr(relax.op.nn, str(call.op.name).removeprefix("relax.nn."))
    part = function(
        data,
        as_constant(filter_tap),
        strides=list(attrs.strides),
        data_layout=str(attrs.data_layout),
        kernel_layout=str(attrs.kernel_layout),
        out_layout=str(attrs.out_layout),
        out_dtype=attrs.out_dtype,
    )
    widths = [0, 0, 0, 0]
    for tap, window in zip(taps, windows, strict=True):
        widths += [tap.first, window.out - tap.last]
    return relax.op.nn.pad(graph.emit(part), widths) if any(widths) else part
