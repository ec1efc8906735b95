"""Operators of PyTorch that its ONNX exporter has no conversion for are written with ones that it has.

They are discovered in `compiler.frontends.torch.operators`, one file per family.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from schedules.discovery import import_all

if TYPE_CHECKING:
    import torch

Decomposition = Callable[..., Any]
_DECOMPOSITIONS: dict[str, Decomposition] = {}


def decomposition_of(*operators: str) -> Callable[[Decomposition], Decomposition]:
    """Register a function that takes the arguments of these operators ("aten.cdist.default") and computes the same.

    `torch` traces it into the program. It returns NotImplemented for arguments that it does not cover.
    """

    def register(function: Decomposition) -> Decomposition:
        for operator in operators:
            if operator in _DECOMPOSITIONS:
                raise ValueError(f"{operator} is decomposed twice")
            _DECOMPOSITIONS[operator] = function
        return function

    return register


def decomposed(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program without the operators that have a decomposition here; the same one where it uses none."""
    known = decompositions()
    graphs = [each.graph for each in program.graph_module.modules() if hasattr(each, "graph")]  # of branches, too
    used = {node.target for graph in graphs for node in graph.nodes if str(node.target) in known}
    return program.run_decompositions({each: known[str(each)] for each in used}) if used else program


def decompositions() -> dict[str, Decomposition]:
    """The function for each operator that is decomposed here."""
    _discover()
    return _DECOMPOSITIONS


@cache
def _discover() -> None:
    import_all("compiler.frontends.torch.operators")
