"""In-place operators on values with no other reader, such as ReLUs after convolutions."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

from compiler.frontends.torch.constants import writes
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
    """Select each element of an `unbind` on its own, if the program writes in place: written elements would fix the
    sizes of the tensor."""
    import torch

    aten, graph = torch.ops.aten, program.graph
    if not any(writes(node.target) for node in graph.nodes):
        return
    for node in [each for each in graph.nodes if each.target is aten.unbind.int]:
        users = list(node.users)
        if any(user.target is not operator.getitem for user in users):
            continue
        axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        for user in users:
            user.target, user.args = aten.select.int, (node.args[0], axis, user.args[1])
        graph.erase_node(node)
    program.graph_module.recompile()


def _is_own(node: torch.fx.Node) -> bool:
    """True if a node is the only reader of the fresh tensor that it writes to, whose type is that of all operands."""
    written: Any = node.args[0]
    values = [each.meta.get("val") for each in node.all_input_nodes]
    dtypes = {getattr(value, "dtype", None) for value in values}
    (dtype,) = dtypes if len(dtypes) == 1 else (None,)
    alone = str(written.target) in _FRESH and list(written.users) == [node]
    return alone and dtype is not None and bool(dtype.is_floating_point)
