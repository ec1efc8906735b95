"""All subjects, in the same order in every process."""

from __future__ import annotations

from functools import cache

from tests.fuzz.hostile import (
    onnx_indices,
    onnx_mismatch,
    onnx_signals,
    onnx_sizes,
    onnx_stateful,
    onnx_windows,
    torch_indices,
    torch_sizes,
)
from tests.fuzz.hostile.catalog import Subject

_ONNX = (onnx_indices, onnx_sizes, onnx_signals, onnx_mismatch, onnx_windows, onnx_stateful)
_TORCH = (torch_indices, torch_sizes)


@cache
def subjects() -> tuple[Subject, ...]:
    """Every model in each of its forms."""
    graphs = (graph for module in _ONNX for graph in module.graphs())
    functions = (function for module in _TORCH for function in module.functions())
    return tuple(subject for each in (*graphs, *functions) for subject in each.subjects())
