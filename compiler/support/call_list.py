"""The calls of a compiled function in order, each with the model nodes that it computes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
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


def nodes_of(callee: str, functions: Mapping[str, Sequence[Step]]) -> list[str]:
    """The names of the model's nodes that the calls of a kernel compute, each once; `functions`: the steps of each."""
    return list(dict.fromkeys(node.name for node in calls_of(callee, functions)))


def calls_of(callee: str, functions: Mapping[str, Sequence[Step]]) -> list[ModelNode]:
    """The model's nodes that the calls of a kernel compute, in the order of the calls."""
    found: list[ModelNode] = []
    waiting = list(functions.values())
    while waiting:
        for step in waiting.pop(0):
            if isinstance(step, Branches):
                waiting += [step.when_true, step.when_false]
            elif step.callee == callee:
                found += step.nodes
    return found


def call_counts(functions: Mapping[str, Sequence[Step]]) -> Counter[str]:
    """Number of calls of each kernel or function, in both branches of a condition."""
    found: Counter[str] = Counter()
    waiting = list(functions.values())
    while waiting:
        for step in waiting.pop():
            if isinstance(step, Branches):
                waiting += [step.when_true, step.when_false]
            else:
                found[step.callee] += 1
    return found
