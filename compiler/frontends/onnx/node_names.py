"""The names by which users know the nodes of an ONNX model, and bindings that carry them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
from tvm import relax

from compiler.frontends.onnx.module_paths import shown_name
from compiler.support.model_nodes import ModelNode, variable_name

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Expr


class NamingBuilder(relax.BlockBuilder):
    """A block builder that names variables after the node at hand.

    Attributes:
        node: whose results are being bound, None outside of any.
        nodes: for each variable named so, its node.
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
    """A node as users know it: by the path of its torch module where the model was exported from torch, else by name.

    Args:
        prefix: the name of the node that calls the function it is part of.
    """
    name = shown_name(node) or node.op_type
    return ModelNode(f"{prefix}/{name}" if prefix else name, node.op_type)
