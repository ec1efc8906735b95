"""Operators of PyTorch that its ONNX exporter has no conversion for, and that are one of ONNX."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The exporter's `custom_translation_table`. Of torchvision's operators only where that is imported: a program
    that uses them has imported it."""
    import torch

    if "torchvision" not in sys.modules:
        return {}
    return {torch.ops.torchvision.roi_pool.default: _roi_pool}


def _roi_pool(values: Any, regions: Any, scale: float, height: int, width: int) -> Any:
    """The largest elements; the second output, their places, is for training alone."""
    from onnxscript import opset18

    pooled = opset18.MaxRoiPool(values, regions, pooled_shape=[height, width], spatial_scale=scale)
    return pooled, opset18.Shape(pooled)
