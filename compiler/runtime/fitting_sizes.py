"""Sizes that a model accepts for symbolic dimensions that a caller leaves open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from compiler.artifact.manifest import Requirement
from compiler.support.formula import FormulaError, parsed

# Modules store their examples: an image of 256 x 256 has 786 KB.
_TRIED = (*range(1, 65), *range(96, 257, 32))


def holds(relation: str, left: int, right: int) -> bool:
    """True if two values are in a relation: "equal", "at least", or "broadcast" (equal, or one of them 1)."""
    if relation == "at least":
        return left >= right
    return left == right or (relation == "broadcast" and 1 in (left, right))


def fitting_sizes(sizes: Mapping[str, int], free: set[str], relations: Sequence[Requirement]) -> dict[str, int]:
    """`sizes` with the `free` dimensions changed so that all relations hold; `sizes` unchanged if no such change is
    found.

    As long as a relation does not hold, the first candidate size for which the most relations hold is chosen, for one
    of its dimensions or for all of them together.
    """
    fitted = dict(sizes)
    broken = _broken(fitted, relations)
    while broken:
        names = sorted(free & set(broken[0].symbols.values()))
        groups = [*([name] for name in names), *([names] if len(names) > 1 else [])]
        trials = [fitted | dict.fromkeys(group, size) for group in groups for size in _TRIED]
        counts = [len(_broken(trial, relations)) for trial in trials]
        if not trials or min(counts) >= len(broken):
            return dict(sizes)
        fitted = trials[counts.index(min(counts))]
        broken = _broken(fitted, relations)
    return fitted


def _broken(sizes: Mapping[str, int], relations: Sequence[Requirement]) -> list[Requirement]:
    return [each for each in relations if not _holds_at(each, sizes)]


def _holds_at(relation: Requirement, sizes: Mapping[str, int]) -> bool:
    values = {name: sizes[at] for name, at in relation.symbols.items() if at in sizes}
    try:
        left, right = (parsed(formula).value(values) for formula in (relation.left, relation.right))
    except FormulaError:
        return False
    return holds(relation.relation, left, right)
