"""Operators of PyTorch that are one of ONNX, and that its ONNX exporter has no conversion for or not the right one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from compiler.frontends.torch import causal_attention, grouped_products
from compiler.frontends.torch.quantized_operators import QUANTIZED_OPERATORS, int_mm
from compiler.frontends.torch.recurrent_layers import OPERATORS, translation
from compiler.frontends.torch.resampling import RESAMPLING

if TYPE_CHECKING:
    import torch


def translations(program: torch.export.ExportedProgram) -> dict[Callable[..., Any], Callable[..., Any]]:
    """The exporter's `custom_translation_table`. An operator of a package is there only where a program has it."""
    import torch

    found = {node.target: KNOWN[str(node.target)] for node in program.graph.nodes if str(node.target) in KNOWN}
    resampling = {_operator(name): conversion for name, conversion in RESAMPLING.items()}
    attention = (
        {_operator(causal_attention.OPERATOR): causal_attention.attention}
        if causal_attention.needs_operator(program)
        else {}
    )
    sums = {_operator("aten.add.Tensor"): _add} if _adds_booleans(program) else {}
    return {torch.ops.aten._int_mm.default: int_mm, **resampling, **attention, **sums, **found}


def _adds_booleans(program: torch.export.ExportedProgram) -> bool:
    """True if a sum is of booleans; the exporter's own conversion, which stays for complex numbers, takes none."""
    import torch

    sums = ("aten.add.Tensor", "aten.add_.Tensor")
    graphs = [each.graph for each in program.graph_module.modules() if hasattr(each, "graph")]  # of branches, too
    nodes = [node for graph in graphs for node in graph.nodes if str(node.target) in sums]
    dtypes = {node.meta["val"].dtype for node in nodes if "val" in node.meta}
    return torch.bool in dtypes and not any(dtype.is_complex for dtype in dtypes)


def _add(left: Any, right: Any, alpha: float = 1) -> Any:
    """left + alpha * right, which of booleans is `or`."""
    from onnxscript import ir, opset18

    if left.dtype == ir.DataType.BOOL:
        return opset18.Or(left, right if alpha else opset18.And(right, opset18.Not(right)))
    return opset18.Add(left, right if alpha == 1 else opset18.Mul(right, opset18.CastLike(alpha, right)))


def _operator(name: str) -> Callable[..., Any]:
    """The overload of a name such as "aten.upsample_bilinear2d.vec"."""
    import torch

    namespace, operator, overload = name.split(".")
    found: Callable[..., Any] = getattr(getattr(getattr(torch.ops, namespace), operator), overload)
    return found


def _roi_pool(values: object, regions: object, scale: float, height: int, width: int) -> Any:
    """The largest elements; the second output, their places, is for training alone."""
    from onnxscript import opset18

    pooled = opset18.MaxRoiPool(values, regions, pooled_shape=[height, width], spatial_scale=scale)
    return pooled, opset18.Shape(pooled)


KNOWN: dict[str, Callable[..., Any]] = {
    "torchvision.roi_pool.default": _roi_pool,
    **dict.fromkeys(grouped_products.OPERATORS, grouped_products.grouped_product),
    **QUANTIZED_OPERATORS,
    **{name: translation(name) for name in OPERATORS},
}
