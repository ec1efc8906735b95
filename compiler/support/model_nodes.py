"""Nodes of a user's model, and how variables in a Relax module refer to them by name.

A frontend names the variable for a node's result after the node. Passes keep the names of variables, and derive the
names of replacements from them (`derived_name`), so that a name leads to the node.

This file also defines the ordered calls of a compiled function, each with the model nodes that it computes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

_DERIVED = re.compile(r"(.+?)__\d+$")
_PLAIN = re.compile(r"[a-z]+\d*")
_LONGEST = 120  # maximum characters of a variable name; the table has the full name


class ModelNode(NamedTuple):
    """A node of the user's model.

    Attributes:
        name: name of an ONNX node, the path of a torch module ("layer3.1.conv2"), or a Relax variable.
        operator: the operator: "Conv", "relax.nn.conv2d".
    """

    name: str
    operator: str


def variable_name(node: ModelNode) -> str:
    """The node's name as an identifier that differs from TVM's generated names ("lv3", "gv")."""
    name = re.sub(r"\W", "_", node.name, flags=re.ASCII)[:_LONGEST].strip("_")
    if not name or name[0].isdigit():
        name = f"node_{name}"
    return f"{name}_" if _PLAIN.fullmatch(name) else name


def derived_name(variable: str, number: int) -> str:
    """The name of the `number`th variable that a pass creates for the value of `variable`."""
    return f"{original_name(variable)}__{number}"


def original_name(variable: str) -> str:
    """The name from which a name was derived; the name itself if it is not derived."""
    found = _DERIVED.fullmatch(variable)
    return variable if found is None else found[1]


@dataclass(frozen=True)
class Call:
    """A call of a kernel, or of another function in the module."""

    callee: str
    nodes: tuple[ModelNode, ...]


@dataclass(frozen=True)
class Branches:
    """The calls in each of two branches."""

    when_true: tuple[Step, ...]
    when_false: tuple[Step, ...]


Step = Call | Branches


def nodes_of(callee: str, functions: Mapping[str, Sequence[Step]]) -> list[str]:
    """The distinct names of the model nodes that the calls of a kernel compute; `functions` are the steps of each
    function."""
    return list(dict.fromkeys(node.name for node in calls_of(callee, functions)))


def calls_of(callee: str, functions: Mapping[str, Sequence[Step]]) -> list[ModelNode]:
    """The model nodes that the calls of a kernel compute, in the order of the calls."""
    calls: list[ModelNode] = []
    waiting = list(functions.values())
    while waiting:
        for step in waiting.pop(0):
            if isinstance(step, Branches):
                waiting += [step.when_true, step.when_false]
            elif step.callee == callee:
                calls += step.nodes
    return calls


def call_counts(functions: Mapping[str, Sequence[Step]]) -> Counter[str]:
    """Number of calls of each kernel or function, in both branches of a condition."""
    counts: Counter[str] = Counter()
    waiting = list(functions.values())
    while waiting:
        for step in waiting.pop():
            if isinstance(step, Branches):
                waiting += [step.when_true, step.when_false]
            else:
                counts[step.callee] += 1
    return counts
