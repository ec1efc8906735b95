"""Operators of PyTorch that are one of ONNX, and that its ONNX exporter has no conversion for or not the right one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from compiler.frontends.torch.quantized_operators import QUANTIZED_OPERATORS, int_mm
from compiler.frontends.torch.resampling import RESAMPLING

if TYPE_CHECKING:
    import torch


def translations(program: torch.export.ExportedProgram) -> dict[Callable[..., Any], Callable[..., Any]]:
    """The exporter's `custom_translation_table`. An operator of a package is there only where a program has it."""
    import torch

    found = {node.target: KNOWN[str(node.target)] for node in program.graph.nodes if str(node.target) in KNOWN}
    resampling = {_operator(name): conversion for name, conversion in RESAMPLING.items()}
    return {torch.ops.aten._int_mm.default: int_mm, **resampling, **found}


def _operator(name: str) -> Callable[..., Any]:
    """The overload of a name such as "aten.upsample_bilinear2d.vec"."""
    import torch

    namespace, operator, overload = name.split(".")
    found: Callable[..., Any] = getattr(getattr(getattr(torch.ops, namespace), operator), overload)
    return found


def _roi_pool(values: Any, regions: Any, scale: float, height: int, width: int) -> Any:
    """The largest elements; the second output, their places, is for training alone."""
    from onnxscript import opset18

    pooled = opset18.MaxRoiPool(values, regions, pooled_shape=[height, width], spatial_scale=scale)
    return pooled, opset18.Shape(pooled)


KNOWN: dict[str, Callable[..., Any]] = {"torchvision.roi_pool.default": _roi_pool, **QUANTIZED_OPERATORS}
