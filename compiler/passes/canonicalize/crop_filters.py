"""crop-filters: removes taps at the edge of a filter that only ever read padding.

    conv(x, w, padding) => conv(x, w[..., first:last], less padding)

A 3x3 filter with dilation 36 on an image of 16x16, as in the pyramids of DeepLab, is a 1x1 filter.
"""

from __future__ import annotations

from tvm import relax
from tvm.ir import IRModule

from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.graph import Call, Expr, Graph, RuleTable
from compiler.passes.rewriting.matching import as_constant, constant_array
from compiler.passes.rewriting.window_taps import PLAIN_CONVOLUTIONS, windows_of

rules = RuleTable()


@graph_pass("crop-filters", summary="Remove the taps of convolutions that only read padding")
def crop_filters(mod: IRModule, context: PipelineContext) -> IRModule:
    """See the equation in the module's documentation."""
    return rules.apply(mod)


@rules.on(*PLAIN_CONVOLUTIONS)
def crop_filter(graph: Graph, call: Call) -> Expr | None:
    """conv(x, w, padding) => conv(x, w[..., first:last], less padding)"""
    windows = windows_of(call)
    weight = constant_array(graph, call.args[1])
    if windows is None or weight is None:
        return None
    met = [window.met for window in windows]
    if not all(met) or all(len(taps) == window.taps for taps, window in zip(met, windows, strict=True)):
        return None
    kept = [slice(taps[0].index, taps[-1].index + 1) for taps in met]
    before = [window.before - cut.start * window.dilation for window, cut in zip(windows, kept, strict=True)]
    after = [
        window.after - (window.taps - cut.stop) * window.dilation for window, cut in zip(windows, kept, strict=True)
    ]
    if min(*before, *after, 0) < 0:
        return None  # what is left begins inside of the input
    attrs = call.attrs
    function = getattr(relax.op.nn, str(call.op.name).removeprefix("relax.nn."))
    return function(
        call.args[0],
        as_constant(weight[(slice(None), slice(None), *kept)]),
        strides=list(attrs.strides),
        padding=[*before, *after],
        dilation=list(attrs.dilation),
        groups=int(attrs.groups),
        data_layout=str(attrs.data_layout),
        kernel_layout=str(attrs.kernel_layout),
        out_layout=str(attrs.out_layout),
        out_dtype=attrs.out_dtype,
    )
