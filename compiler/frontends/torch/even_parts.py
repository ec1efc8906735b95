"""`tensor_split` of a dynamic size, part by part: torch's own decomposition fixes the remainder of the division."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

from compiler.errors import Refusal, UnsupportedModelError

if TYPE_CHECKING:
    import torch


def refuse_even_parts(program: torch.export.ExportedProgram) -> None:
    """Raise UnsupportedModelError for a split of a dynamic size, where the graph is not ours to change."""
    found = [Refusal("tensor_split", node.name, "it splits a dynamic size") for node, *_ in _splits(program)]
    if found:
        raise UnsupportedModelError(found, "compile the torch.nn.Module with example_inputs and dynamic_shapes")


def write_out_even_parts(program: torch.export.ExportedProgram) -> None:
    """Replace, in the program's graph, each split of a dynamic size by slices: the larger ones come first."""
    graph = program.graph
    for node, data, sections, axis in _splits(program):
        with graph.inserting_before(node):
            parts = _parts(graph, data, sections, axis)
        for user in list(node.users):
            user.replace_all_uses_with(parts[user.args[1]])
            graph.erase_node(user)
        graph.erase_node(node)


def _splits(program: torch.export.ExportedProgram) -> list[tuple[Any, Any, int, int]]:
    """(node, tensor, number of parts, axis) of each split of a dynamic size."""
    import torch

    found = []
    for node in program.graph.nodes:
        if node.target is torch.ops.aten.tensor_split.sections:
            data, sections = node.args[:2]
            axis = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
            if not isinstance(data.meta["val"].shape[axis], int):
                found.append((node, data, sections, axis))
    return found


def _parts(graph: Any, data: Any, sections: int, axis: int) -> list[Any]:
    import torch

    aten = torch.ops.aten
    size = graph.call_function(aten.sym_size.int, (data, axis))
    start: Any = 0
    parts = []
    for part in range(sections):
        rounded = graph.call_function(operator.add, (size, sections - 1 - part))
        length = graph.call_function(operator.floordiv, (rounded, sections))
        parts.append(graph.call_function(aten.narrow.default, (data, axis, start, length)))
        start = graph.call_function(operator.add, (start, length))
    return parts
