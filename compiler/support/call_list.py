"""The calls of a compiled function in order, each with the model nodes that it computes."""

from __future__ import annotations

from dataclasses import dataclass

from compiler.support.model_nodes import ModelNode


@dataclass(frozen=True)
class Call:
    """A call of a kernel, or of another function of the module."""

    callee: str
    nodes: tuple[ModelNode, ...]


@dataclass(frozen=True)
class Branches:
    """The calls of one of two branches."""

    when_true: tuple[Step, ...]
    when_false: tuple[Step, ...]


Step = Call | Branches
