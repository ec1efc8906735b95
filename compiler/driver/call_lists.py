"""The calls of a module's kernels, with the nodes of the model that they compute, for the manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from compiler.artifact.manifest import MAX_BRANCH_DEPTH, CallList, JsonValue
from compiler.profiling.attribution import names_of
from compiler.support.call_list import Branches, Step


def call_list(functions: Mapping[str, Sequence[Step]]) -> CallList | None:
    """The manifest's entry; None where no call has a node."""
    nodes: dict[str, int] = {}
    callees: dict[str, int] = {}

    def place(name: str, known: dict[str, int]) -> int:
        return known.setdefault(name, len(known))

    def listed(steps: Sequence[Step], depth: int) -> list[JsonValue]:
        found: list[JsonValue] = []
        for step in steps:
            if isinstance(step, Branches):
                if depth < MAX_BRANCH_DEPTH:
                    found.append([listed(step.when_true, depth + 1), listed(step.when_false, depth + 1)])
            else:
                found.append([place(step.callee, callees), *(place(name, nodes) for name in names_of(step.nodes))])
        return found

    made = {name: listed(steps, 0) for name, steps in functions.items()}
    return CallList(nodes=tuple(nodes), callees=tuple(callees), functions=made) if nodes else None
