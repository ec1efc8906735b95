"""In-place operators on values with no other reader, such as ReLUs after convolutions, and on views."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

from compiler.errors import Refusal, UnsupportedModelError
from compiler.frontends.torch.constants import writes
from compiler.frontends.torch.requirements import shown_name
from compiler.frontends.torch.translations import overload

if TYPE_CHECKING:
    import torch

_IN_PLACE = {
    f"aten.{name}"
    for name in (
        *("relu_.default", "silu_.default", "sigmoid_.default", "tanh_.default", "hardtanh_.default"),
        *("hardswish_.default", "hardsigmoid_.default", "leaky_relu_.default", "elu_.default"),
        *("add_.Tensor", "sub_.Tensor", "mul_.Tensor", "div_.Tensor"),
    )
}


def _functional(name: str) -> str:
    """Return the name of the form that returns a new tensor."""
    return name.replace("_.", ".")


# Their results are new tensors, never views or the arguments themselves.
_FRESH = {
    *map(_functional, _IN_PLACE),
    *(
        f"aten.{name}"
        for name in (
            *("conv1d.default", "conv2d.default", "conv3d.default", "conv2d.padding", "linear.default"),
            *("conv_transpose1d.default", "conv_transpose2d.input", "conv_transpose3d.input", "batch_norm.default"),
            *("layer_norm.default", "group_norm.default", "instance_norm.default", "cat.default"),
        )
    ),
}

_VIEWS_OR_COPIES = {
    f"aten.{name}" for name in ("reshape.default", "contiguous.default", "flatten.using_ints", "to.dtype")
}


def write_out_activations(program: torch.export.ExportedProgram) -> None:
    """Make in-place activations and arithmetic on fresh values without other readers return new values.

    `run_decompositions` does so for all in-place operators, but traces the whole program again, which takes as long as
    capturing it.
    """
    for node in program.graph.nodes:
        writes_nothing = str(node.target) == "aten.dropout_.default" and not node.args[2]
        if writes_nothing or (str(node.target) in _IN_PLACE and _is_own(node)):
            node.target = overload(_functional(str(node.target)))
    program.graph_module.recompile()


def write_out_elements(program: torch.export.ExportedProgram) -> None:
    """Select each element of an `unbind` on its own: written elements would fix the sizes of the tensor."""
    import torch

    aten, graph = torch.ops.aten, program.graph
    for node in [each for each in graph.nodes if each.target is aten.unbind.int]:
        users = list(node.users)
        if any(user.target is not operator.getitem for user in users):
            continue
        axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        for user in users:
            user.target, user.args = aten.select.int, (node.args[0], axis, user.args[1])
        graph.erase_node(node)
    program.graph_module.recompile()


def write_out_diagonals(program: torch.export.ExportedProgram) -> None:
    """Fill the diagonal of a matrix as a view: PyTorch's own decomposition, `as_strided`, fails on views."""
    import torch

    aten, graph = torch.ops.aten, program.graph
    for node in graph.find_nodes(op="call_function", target=aten.fill_diagonal_.default):
        matrix, value, *wrap = node.args
        if matrix.meta["val"].ndim != 2 or any(wrap) or node.kwargs:
            continue
        with graph.inserting_before(node):
            diagonal = graph.call_function(aten.diagonal.default, (matrix,))
            graph.call_function(aten.fill_.Scalar, (diagonal, value))
        node.replace_all_uses_with(matrix)
        graph.erase_node(node)
    program.graph_module.recompile()


def write_out_windows(program: torch.export.ExportedProgram) -> None:
    """Express each `unfold` that the program writes through by views that divide the axis.

    PyTorch makes such a write functional by adding up the windows: that loses what no window covers, and counts twice
    what several cover (`unfold_inverse` in ATen's FunctionalInverses.cpp).

    Raises:
        UnsupportedModelError: the windows overlap, or the gap after the last one may be incomplete.
    """
    import torch

    aten, graph = torch.ops.aten, program.graph
    for node in _written_windows(program):
        data, axis, size, step = node.args
        axis = axis % data.meta["val"].ndim
        with graph.inserting_before(node):
            count = graph.call_function(operator.floordiv, (graph.call_function(aten.sym_size.int, (data, axis)), step))
            length = graph.call_function(operator.mul, (count, step))
            covered = graph.call_function(aten.narrow.default, (data, axis, 0, length))
            divided = graph.call_function(aten.unflatten.int, (covered, axis, [count, step]))
            windows = graph.call_function(aten.narrow.default, (divided, axis + 1, 0, size))
            moved = graph.call_function(aten.movedim.int, (windows, axis + 1, -1))
        moved.meta = dict(node.meta)
        node.replace_all_uses_with(moved)
        graph.erase_node(node)
    program.graph_module.recompile()


def refuse_windows(program: torch.export.ExportedProgram) -> None:
    """Raise UnsupportedModelError for an `unfold` that is written through, if the graph must not be modified."""
    found = [_refusal(node) for node in _written_windows(program)]
    if found:
        raise UnsupportedModelError(found, "compile the torch.nn.Module with example_inputs and dynamic_shapes")


def _written_windows(program: torch.export.ExportedProgram) -> list[Any]:
    """Return each `unfold` with an in-place operator on it or on a view of it, whose windows divide the axis."""
    import torch

    found: dict[Any, None] = {}
    for node in [each for each in program.graph.nodes if writes(each.target)]:
        view, may_be_copy = node, False
        while view.args and isinstance(view.args[0], torch.fx.Node):
            view = view.args[0]
            if view.target is torch.ops.aten.unfold.default:
                if _divides(view):
                    found[view] = None
                elif not may_be_copy:
                    raise UnsupportedModelError([_refusal(view)], "write to slices of the tensor instead")
            elif not _is_view(view):
                break
            may_be_copy |= str(view.target) in _VIEWS_OR_COPIES
    return list(found)


def _is_view(node: Any) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(each.alias_info is not None for each in schema.returns)


def _divides(node: Any) -> bool:
    """True if an axis consists of the windows of an `unfold`, the gaps after them, and a rest of less than a step."""
    data, axis, size, step = node.args
    extent = data.meta["val"].shape[axis]
    return bool(step == size or (step > size and isinstance(extent, int) and extent % step < size))


def _refusal(node: Any) -> Refusal:
    return Refusal("unfold", shown_name(node), "the model writes through its windows")


def _is_own(node: torch.fx.Node) -> bool:
    """True if a node is the only reader of the fresh tensor that it writes to, whose type is that of all operands."""
    written: Any = node.args[0]
    values = [each.meta.get("val") for each in node.all_input_nodes]
    dtypes = {getattr(value, "dtype", None) for value in values}
    (dtype,) = dtypes if len(dtypes) == 1 else (None,)
    alone = str(written.target) in _FRESH and list(written.users) == [node]
    return alone and dtype is not None and bool(dtype.is_floating_point)
