"""Branches that a model's own code takes on sizes: `torch.export` follows the one that the example takes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.frontends.torch.size_relations import SizeRelation

if TYPE_CHECKING:
    import torch


def branch_relations(program: torch.export.ExportedProgram) -> Iterator[tuple[SizeRelation, str]]:
    """Relations between input sizes under which the followed branches are taken, and where they are.

    Conditions that PyTorch's own operators ask for (of strides, mostly) hold for the results of other sizes as well.
    """
    values = (node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder")
    environments = {id(mode.shape_env): mode.shape_env for mode in (getattr(each, "fake_mode", None) for each in values)
                    if mode is not None and mode.shape_env is not None}  # fmt: skip
    for environment in environments.values():
        for guard in environment.guards:
            place: Any = getattr(guard.sloc, "framework_loc", None)
            if hasattr(place, "filename") and not _is_private(place.filename):
                where = f"a branch of the model ({Path(place.filename).name}:{place.lineno})"
                yield from ((relation, where) for relation in _relations(guard.expr))


def _is_private(filename: str) -> bool:
    """True if it is a file of PyTorch that computes shapes and strides."""
    import torch

    home = Path(torch.__file__).parent
    path = Path(filename)
    return path.is_relative_to(home) and path.relative_to(home).parts[0].startswith("_")


def _relations(condition: Any) -> Iterator[SizeRelation]:
    """A condition of sympy as relations; none where it is an alternative."""
    if type(condition).__name__ == "And":
        for part in condition.args:
            yield from _relations(part)
        return
    kind = getattr(condition, "rel_op", None)
    if kind is None:
        return
    left, right = condition.lhs, condition.rhs
    if kind in (">=", ">"):
        yield SizeRelation(left, "at least", right if kind == ">=" else right + 1)
    elif kind in ("<=", "<"):
        yield SizeRelation(right, "at least", left if kind == "<=" else left + 1)
    elif kind == "==":
        yield SizeRelation(left, "equal", right)
    elif kind == "!=":
        difference = f"({left} - ({right}))"
        yield SizeRelation(f"{difference}*{difference}", "at least", 1)  # its square
