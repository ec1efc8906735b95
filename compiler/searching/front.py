"""Candidates and their Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compiler.searching.knobs import Option
from compiler.searching.layer_table import Costs


@dataclass(frozen=True)
class Candidate:
    """A config with its score before fine-tuning, and its costs. `excess`: the largest fraction by which one of its
    costs exceeds the budget; 0 or less within it."""

    config: dict[str, Option]
    score: float
    costs: Costs
    excess: float


def feasible(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Candidates within the budget, the best first; ties are ordered by cost."""
    fits = [each for each in candidates if each.excess <= 0]
    return sorted(fits, key=lambda each: (-each.score, each.excess))


def pareto(candidates: Sequence[Candidate], cost: str) -> list[Candidate]:
    """Pareto front of the score and the named cost, the cheapest first."""
    front: list[Candidate] = []
    for each in sorted(candidates, key=lambda each: (each.costs[cost], -each.score)):
        if not front or each.score > front[-1].score:
            front.append(each)
    return front
