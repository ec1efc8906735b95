"""Names of nodes of an exported program, as users know them: the paths of their torch modules."""

from __future__ import annotations

from typing import Any

_CONTAINERS = "torch.nn.modules.container."


def shown_name(node: Any) -> str:
    """The path of the module that the node computes; of a module that is more than an operator, a node of it."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return str(node.name)
    path, kind = (str(each) for each in stack[-1])
    is_operator = kind.startswith("torch.nn.modules.") and not kind.startswith(_CONTAINERS)
    return path if path and is_operator else ".".join(filter(None, (path, str(node.name))))
