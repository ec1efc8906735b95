"""LSTMs with projections, written out step by step: ONNX's LSTM has none, and the exporter leaves them out silently."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def without_projections(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program with each `torch.nn.LSTM` of `proj_size` > 0 as its single steps; other LSTMs stay.

    The number of steps is known: `torch.export` fixes it for such layers.
    """
    import torch
    from torch._decomp import get_decompositions

    lstm = torch.ops.aten.lstm.input
    if not any(node.target is lstm and _projects(*node.args[2:]) for node in program.graph.nodes):
        return program
    steps = get_decompositions([lstm])[lstm]

    def decomposition(*arguments: Any) -> Any:
        return steps(*arguments) if _projects(*arguments[2:]) else NotImplemented

    return program.run_decompositions({lstm: decomposition})


def _projects(
    parameters: Sequence[Any], biases: bool, layers: int, dropout: float, training: bool, bidirectional: bool, *_: bool
) -> bool:
    """True if each direction of each layer has a matrix more than those of its input, state and biases."""
    return len(parameters) > layers * (1 + bidirectional) * (2 + 2 * biases)
