"""Splits of dynamic sizes, part by part.

The decomposition of `tensor_split` fixes the remainder of the division; the exporter's optimizer fails on parts of
`chunk` and `split` with unknown sizes.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

from compiler.errors import Refusal, UnsupportedModelError
from compiler.frontends.torch.requirements import shown_name

if TYPE_CHECKING:
    import torch


def refuse_even_parts(program: torch.export.ExportedProgram) -> None:
    """Raise UnsupportedModelError for a split of a dynamic size, if the graph must not be modified."""
    found = [Refusal("tensor_split", shown_name(node), "it splits a dynamic size") for node in _splits(program)]
    if found:
        raise UnsupportedModelError(found, "compile the torch.nn.Module with example_inputs and dynamic_shapes")


def write_out_even_parts(program: torch.export.ExportedProgram) -> None:
    """Replace each split of a dynamic size in the program's graph by slices, the larger ones first."""
    graph = program.graph
    for node in _splits(program):
        data, sections, axis = _split(node)
        with graph.inserting_before(node):
            parts = _parts(graph, data, sections, axis)
        for user in list(node.users):
            parts[user.args[1]].meta = dict(user.meta)
            user.replace_all_uses_with(parts[user.args[1]])
            graph.erase_node(user)
        graph.erase_node(node)


def write_out_sized_parts(program: torch.export.ExportedProgram) -> None:
    """Replace each part of a `split` or `chunk` of a dynamic size in the program's graph by a slice."""
    import torch

    aten = torch.ops.aten
    graph = program.graph
    for node in list(graph.nodes):
        if node.target not in (aten.split.Tensor, aten.chunk.default):
            continue
        data, size = node.args[:2]
        axis = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
        users = [user for user in node.users if user.target is operator.getitem]
        known = isinstance(size, int) and isinstance(data.meta["val"].shape[axis], int)
        if known or len(users) < len(node.users):
            continue
        with graph.inserting_before(node):
            if node.target is aten.chunk.default:
                rounded = graph.call_function(operator.add, (_size(graph, data, axis), size - 1))
                size = graph.call_function(operator.floordiv, (rounded, size))
            for user in users:
                start, end = (graph.call_function(operator.mul, (size, user.args[1] + past)) for past in (0, 1))
                piece = graph.call_function(aten.slice.Tensor, (data, axis, start, end))
                piece.meta = dict(user.meta)
                user.replace_all_uses_with(piece)
                graph.erase_node(user)
        graph.erase_node(node)


def _size(graph: Any, data: Any, axis: int) -> Any:
    import torch

    return graph.call_function(torch.ops.aten.sym_size.int, (data, axis))


def _splits(program: torch.export.ExportedProgram) -> list[Any]:
    """Return each split of a dynamic size."""
    import torch

    found = []
    for node in program.graph.nodes:
        if node.target is torch.ops.aten.tensor_split.sections:
            data, _, axis = _split(node)
            if not isinstance(data.meta["val"].shape[axis], int):
                found.append(node)
    return found


def _split(node: Any) -> tuple[Any, Any, Any]:
    """Return the tensor, the number of parts, and the axis of a split."""
    data, sections = node.args[:2]
    return data, sections, node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)


def _parts(graph: Any, data: Any, sections: int, axis: int) -> list[Any]:
    import torch

    aten = torch.ops.aten
    size = _size(graph, data, axis)
    start: Any = 0
    parts = []
    for part in range(sections):
        rounded = graph.call_function(operator.add, (size, sections - 1 - part))
        length = graph.call_function(operator.floordiv, (rounded, sections))
        parts.append(graph.call_function(aten.narrow.default, (data, axis, start, length)))
        start = graph.call_function(operator.add, (start, length))
    return parts
