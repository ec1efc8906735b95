"""Readable names of ONNX nodes: paths of their original torch modules, and bindings named after them."""

from __future__ import annotations

import re

import onnx
from tvm import relax

from compiler.support.model_nodes import ModelNode, variable_name
from schedules.ir.tvm_types import Expr

# Written by torch.onnx.export(dynamo=True): the torch modules around a node, outermost first, then the node of the
# exported program; and the classes of these modules, then the operator.
_SCOPES = "pkg.torch.onnx.name_scopes"
_CLASSES = "pkg.torch.onnx.class_hierarchy"
_CONTAINERS = "torch.nn.modules.container."


def shown_name(node: onnx.NodeProto) -> str:
    """Return the node's name for users, or its first output's if it has none."""
    return _module_path(node) or node_name(node)


def node_name(node: onnx.NodeProto) -> str:
    """Return the node's own name, or its first output's if it has none."""
    return node.name or next((name for name in node.output if name), "")


def _module_path(node: onnx.NodeProto) -> str | None:
    """Return the path of the torch module that the node computes; for a module of several operators, of a node in
    it."""
    notes = {each.key: each.value for each in node.metadata_props if each.key in (_SCOPES, _CLASSES)}
    scopes, classes = _texts(notes.get(_SCOPES, "")), _texts(notes.get(_CLASSES, ""))
    if len(scopes) < 2 or len(classes) != len(scopes):
        return None
    path, function_name, kind = scopes[-2], scopes[-1], classes[-2]
    for name in node.input:
        module, dot, parameter = name.rpartition(".")
        # A convolution with a folded batch norm has the batch norm's name.
        if dot and parameter == "weight" and module.rpartition(".")[0] == path.rpartition(".")[0]:
            return module
    is_operator = kind.startswith("torch.nn.modules.") and not kind.startswith(_CONTAINERS)
    return path if path and is_operator else ".".join(filter(None, (path, function_name)))


def _texts(listed: str) -> list[str]:
    """Return the strings in the text of a Python list of strings."""
    return re.findall(r"'([^']*)'", listed)


class NamingBuilder(relax.BlockBuilder):
    """A block builder that names variables after the current node.

    Attributes:
        node: the node whose results are being bound, None outside of any.
        nodes: the node of each variable named after one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.node: ModelNode | None = None
        self.nodes: dict[str, ModelNode] = {}

    def emit(self, expr: Expr, name_hint: str = "") -> Expr:
        """Like TVM's `emit`, but an unnamed variable gets the node's name."""
        if name_hint or self.node is None:
            return super().emit(expr, name_hint)
        variable = super().emit(expr, variable_name(self.node))
        self.nodes[str(variable.name)] = self.node
        return variable


def model_node(node: onnx.NodeProto, prefix: str = "") -> ModelNode:
    """Return a node's identity for users: the path of its torch module if exported from torch, otherwise its name.
    `prefix`: the name of the node that calls the enclosing function."""
    name = shown_name(node) or node.op_type
    return ModelNode(f"{prefix}/{name}" if prefix else name, node.op_type)
