"""Names of ONNX nodes for people: the path of the torch module that a node was exported from, or its own name."""

from __future__ import annotations

import re

import onnx

# Written by torch.onnx.export(dynamo=True): the torch modules around a node, outermost first, then the node of the
# exported program; and the classes of these modules, then the operator.
_SCOPES = "pkg.torch.onnx.name_scopes"
_CLASSES = "pkg.torch.onnx.class_hierarchy"
_CONTAINERS = "torch.nn.modules.container."


def shown_name(node: onnx.NodeProto) -> str:
    """The name by which users know a node; its first output's name where it has none."""
    return _module_path(node) or node_name(node)


def node_name(node: onnx.NodeProto) -> str:
    """The node's own name, or its first output's where it has none."""
    return node.name or next((name for name in node.output if name), "")


def _module_path(node: onnx.NodeProto) -> str | None:
    """The path of the torch module that the node computes; of a module that is more than an operator, a node of it."""
    notes = {each.key: each.value for each in node.metadata_props if each.key in (_SCOPES, _CLASSES)}
    scopes, classes = _texts(notes.get(_SCOPES, "")), _texts(notes.get(_CLASSES, ""))
    if len(scopes) < 2 or len(classes) != len(scopes):
        return None
    path, own, kind = scopes[-2], scopes[-1], classes[-2]
    for name in node.input:
        module, dot, parameter = name.rpartition(".")
        # A convolution with its batch norm folded in bears the batch norm's name.
        if dot and parameter == "weight" and module.rpartition(".")[0] == path.rpartition(".")[0]:
            return module
    is_operator = kind.startswith("torch.nn.modules.") and not kind.startswith(_CONTAINERS)
    return path if path and is_operator else ".".join(filter(None, (path, own)))


def _texts(listed: str) -> list[str]:
    """The strings in the text of a Python list of strings."""
    return re.findall(r"'([^']*)'", listed)
