"""fold-pad: fold explicit padding into the convolution or pooling it feeds.

    conv(pad(x, 0), w)        => conv(x, w, padding)
    avg_pool(pad(x, 0))       => avg_pool(x, padding), which then counts it
    max_pool(pad(x, lowest))  => max_pool(x, padding); also with 0 for x >= 0

Only if no other than spatial axes are padded, and nothing else uses the padded tensor.

crop-filters: remove taps at the edge of a filter that only ever read padding.

    conv(x, w, padding) => conv(x, w[..., first:last], less padding)

For example, a 3x3 filter with dilation 36 on a 16x16 image, as in DeepLab, is a 1x1 filter.
"""

from __future__ import annotations

import numpy as np
from tvm import relax
from tvm.ir import IRModule

from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.constant_products import PLAIN_CONVOLUTIONS, windows_of
from compiler.passes.rewriting.graph import Call, Expr, Graph, RuleTable
from compiler.passes.rewriting.matching import as_constant, constant_array, dtype_of, is_non_negative

rules = RuleTable()

_AVERAGE = tuple(f"relax.nn.avg_pool{rank}d" for rank in (1, 2, 3))
_MAX_POOLS = tuple(f"relax.nn.max_pool{rank}d" for rank in (1, 2, 3))
_CONVOLUTION_ATTRIBUTES = ("strides", "padding", "dilation", "groups", "data_layout", "kernel_layout", "out_layout")
_POOL_ATTRIBUTES = (
    "pool_size",
    "strides",
    "padding",
    "dilation",
    "ceil_mode",
    "count_include_pad",
    "layout",
    "out_layout",
)


@graph_pass("fold-pad", summary="Make explicit padding the padding of the convolution or pooling it feeds")
def fold_pad(mod: IRModule, context: PipelineContext) -> IRModule:
    """See the equations in the module docstring."""
    return rules.apply(mod)


def padded_operand(graph: Graph, call: Call, layout: str) -> tuple[Call, list[int]] | None:
    """Return the constant padding that feeds `call`, and the padding to add to the call: all begins, then all ends."""
    pad = graph.call(call.args[0], "relax.nn.pad")
    if pad is None or not graph.only_use(call.args[0]) or str(pad.attrs.pad_mode) != "constant":
        return None
    widths = [int(width) for width in pad.attrs.pad_width]
    if len(widths) != 2 * len(layout) or not layout.isalpha() or min(widths) < 0:
        return None
    spatial = [axis for axis, letter in enumerate(layout) if letter not in "NC"]
    if any(widths[2 * axis] or widths[2 * axis + 1] for axis in range(len(layout)) if axis not in spatial):
        return None
    return pad, [widths[2 * axis] for axis in spatial] + [widths[2 * axis + 1] for axis in spatial]


def rebuilt(call: Call, data: Expr, names: tuple[str, ...], added: list[int], **changes: object) -> Call:
    """Return `call` on `data` with `added` on top of its padding."""
    values = {name: getattr(call.attrs, name) for name in names}
    values["padding"] = [int(own) + more for own, more in zip(values["padding"], added, strict=True)]
    function = getattr(relax.op.nn, str(call.op.name).removeprefix("relax.nn."))
    return function(data, *list(call.args)[1:], **{**values, **changes})


@rules.on(*PLAIN_CONVOLUTIONS)
def pad_of_convolution(graph: Graph, call: Call) -> Expr | None:
    """conv(pad(x, 0), w) => conv(x, w, padding)"""
    found = padded_operand(graph, call, str(call.attrs.data_layout))
    if found is None or float(found[0].attrs.pad_value) != 0:
        return None
    return rebuilt(call, found[0].args[0], _CONVOLUTION_ATTRIBUTES, found[1], out_dtype=call.attrs.out_dtype)


@rules.on(*_AVERAGE)
def pad_of_average(graph: Graph, call: Call) -> Expr | None:
    """avg_pool(pad(x, 0)) => avg_pool(x, padding), counting the padding"""
    padded = padded_operand(graph, call, str(call.attrs.layout))
    if padded is None or float(padded[0].attrs.pad_value) != 0 or bool(call.attrs.ceil_mode):
        return None
    if any(int(width) for width in call.attrs.padding) and not bool(call.attrs.count_include_pad):
        return None
    return rebuilt(call, padded[0].args[0], _POOL_ATTRIBUTES, padded[1], count_include_pad=True)


@rules.on(*_MAX_POOLS)
def pad_of_maximum(graph: Graph, call: Call) -> Expr | None:
    """max_pool(pad(x, lowest)) => max_pool(x, padding), if no window is all padding"""
    padded = padded_operand(graph, call, str(call.attrs.layout))
    dtype = dtype_of(call)
    if padded is None or bool(call.attrs.ceil_mode) or dtype not in ("float16", "float32", "float64"):
        return None
    pad, widths = padded
    total = [int(own) + more for own, more in zip(call.attrs.padding, widths, strict=True)]
    windows = [int(size) for size in call.attrs.pool_size] * 2
    if any(width >= size for width, size in zip(total, windows, strict=True)):
        return None
    value = float(pad.attrs.pad_value)
    lowest = value <= float(np.finfo(dtype).min)
    if not lowest and not (value == 0 and _is_non_negative(graph, pad.args[0])):
        return None
    return rebuilt(call, pad.args[0], _POOL_ATTRIBUTES, widths)


def _is_non_negative(graph: Graph, expr: Expr) -> bool:
    return graph.call(expr, "relax.nn.relu") is not None or is_non_negative(graph, expr)


crop_rules = RuleTable()


@graph_pass("crop-filters", summary="Remove the taps of convolutions that only read padding")
def crop_filters(mod: IRModule, context: PipelineContext) -> IRModule:
    """See the equations in the module docstring."""
    return crop_rules.apply(mod)


@crop_rules.on(*PLAIN_CONVOLUTIONS)
def crop_filter(graph: Graph, call: Call) -> Expr | None:
    """conv(x, w, padding) => conv(x, w[..., first:last], less padding)"""
    windows = windows_of(call)
    weight = constant_array(graph, call.args[1])
    if windows is None or weight is None:
        return None
    met = [window.met for window in windows]
    if not all(met) or all(len(taps) == window.taps for taps, window in zip(met, windows, strict=True)):
        return None
    slices = [slice(taps[0].index, taps[-1].index + 1) for taps in met]
    pads_before = [window.before - cut.start * window.dilation for window, cut in zip(windows, slices, strict=True)]
    pads_after = [
        window.after - (window.taps - cut.stop) * window.dilation for window, cut in zip(windows, slices, strict=True)
    ]
    if min(*pads_before, *pads_after, 0) < 0:
        return None  # the rest begins inside the input
    attrs = call.attrs
    function = getattr(relax.op.nn, str(call.op.name).removeprefix("relax.nn."))
    return function(
        call.args[0],
        as_constant(weight[(slice(None), slice(None), *slices)]),
        strides=list(attrs.strides),
        padding=[*pads_before, *pads_after],
        dilation=list(attrs.dilation),
        groups=int(attrs.groups),
        data_layout=str(attrs.data_layout),
        kernel_layout=str(attrs.kernel_layout),
        out_layout=str(attrs.out_layout),
        out_dtype=attrs.out_dtype,
    )
