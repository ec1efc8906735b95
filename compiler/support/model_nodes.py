"""Nodes of a user's model, and how variables of a Relax module refer to them by their names.

A frontend names the variable that a node's result is bound to after the node. Passes keep the names of variables, and
name what they make in place of a variable after it (`derived_name`), so that a name leads back to the node.

The calls of a compiled function in order, each with the model nodes that it computes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

_DERIVED = re.compile(r"(.+?)__\d+$")
_PLAIN = re.compile(r"[a-z]+\d*")
_LONGEST = 120  # characters of a variable's name; the table has the whole one


class ModelNode(NamedTuple):
    """A node of the user's model.

    Attributes:
        name: name of an ONNX node, the path of a torch module ("layer3.1.conv2"), or a Relax variable.
        operator: "Conv", "relax.nn.conv2d": what it computes.
    """

    name: str
    operator: str


def variable_name(node: ModelNode) -> str:
    """The node's name as an identifier that is none of those that TVM gives ("lv3", "gv")."""
    name = re.sub(r"\W", "_", node.name, flags=re.ASCII)[:_LONGEST].strip("_")
    if not name or name[0].isdigit():
        name = f"node_{name}"
    return f"{name}_" if _PLAIN.fullmatch(name) else name


def derived_name(variable: str, number: int) -> str:
    """The name of the `number`th variable that a pass makes for the value of `variable`."""
    return f"{original_name(variable)}__{number}"


def original_name(variable: str) -> str:
    """The name that a derived one was made from; the name itself when it is none."""
    found = _DERIVED.fullmatch(variable)
    return variable if found is None else found[1]


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
