"""In-place operators on values with no other reader, such as ReLUs after convolutions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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


def _is_own(node: torch.fx.Node) -> bool:
    """True if a node is the only reader of the fresh tensor that it writes to, whose type is that of all operands."""
    written: Any = node.args[0]
    values = [each.meta.get("val") for each in node.all_input_nodes]
    dtypes = {getattr(value, "dtype", None) for value in values}
    (dtype,) = dtypes if len(dtypes) == 1 else (None,)
    alone = str(written.target) in _FRESH and list(written.users) == [node]
    return alone and dtype is not None and bool(dtype.is_floating_point)
