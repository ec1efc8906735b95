"""What to prune, decided in the same way for graphs and for modules in training."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm.ir import GenericConst

from compiler.compression.pruning.dependencies import Cell, Dependencies
from compiler.compression.pruning.patterns import Pattern, masks
from compiler.compression.pruning.selection import select_units
from compiler.compression.pruning.shrink import kept
from compiler.compression.pruning.weights import Weight
from compiler.compression.report import LayerChange
from compiler.errors import NothingGainedError
from compiler.passes.rewriting.matching import Array

CRITERIA = ("magnitude", "gradient", "second-order", "influence")


@dataclass(frozen=True)
class Plan:
    """The caller's choices; `kind` is None for what makes the graph smaller."""

    pattern: str
    kind: Pattern | None
    criterion: str
    scope: str
    steps: int

    def cells(self, found: Dependencies, usable: Collection[GenericConst] | None = None) -> list[Cell]:
        """The cells to prune. Raises NothingGainedError when there is none.

        Args:
            usable: weights that may lose units; all when None.
        """
        cells = [cell for cell in found.cells if cell.kind == self.pattern and len(cell.units) > 1]
        if usable is not None:
            bound = found.units_of(each.constant for each in found.producers if each.constant not in usable)
            cells = [cell for cell in cells if not bound.intersection(cell.units.tolist())]
        if not cells:
            raise NothingGainedError(
                f"the model has no {self.pattern} that can be removed",
                "what reaches an output, or is normalized together, must stay; other patterns may apply",
            )
        return cells

    def units(self, cells: Sequence[Cell], scores: Array, amount: float, lanes: int, gone: Collection[int] = ()) -> Any:
        return select_units(cells, scores, amount, self.scope, lanes, gone)

    def masks(
        self, weights: Sequence[Weight], saliency: Mapping[GenericConst, Array], amount: float
    ) -> dict[GenericConst, Array]:
        """What stays of each weight, in the weight's own shape."""
        assert self.kind is not None
        if not weights:
            raise NothingGainedError(
                "the model has no weights to prune", "only products with constant weights have them"
            )
        matrices = [weight.matrix(saliency[weight.constant]) for weight in weights]
        chosen = masks(self.kind, matrices, amount, self.scope)
        return {weight.constant: weight.restored(mask) for weight, mask in zip(weights, chosen, strict=True)}

    def settings(self, amount: float) -> dict[str, object]:
        return {
            "pattern": self.pattern,
            "amount": amount,
            "criterion": self.criterion,
            "scope": self.scope,
            "steps": self.steps,
        }

    def title(self, amount: float) -> str:
        share = "" if self.kind is not None and self.kind.of else f" {amount:.0%}"
        return f"prune {self.pattern}{share}"


def require_change(changes: Sequence[LayerChange], plan: Plan, amount: float) -> None:
    """Raises NothingGainedError where nothing went."""
    if not any(change.change for change in changes):
        raise NothingGainedError(
            f"{plan.title(amount)} removes nothing: no layer is large enough for it",
            "give a larger amount, or a smaller pattern",
        )


def unit_masks(found: Dependencies, removed: Array, weights: Collection[GenericConst]) -> dict[GenericConst, Array]:
    """Zeros in weights where shrinking would cut, in the weights' own shapes."""
    result = {}
    for constant in weights:
        axes = found.constants[constant]
        mask = None
        for index, axis in enumerate(axes):
            keep = kept(found, removed, axis)
            if keep is not None and not keep.all():
                shape = [1] * len(axes)
                shape[index] = -1
                mask = keep.reshape(shape) if mask is None else mask & keep.reshape(shape)
        if mask is not None:
            result[constant] = mask
    return result


def cell_changes(cells: Sequence[Cell], removed: Array) -> list[LayerChange]:
    changes = []
    for cell in cells:
        gone = int(removed[cell.units].sum())
        change = f"{gone} {cell.kind} removed" if gone else ""
        reason = "" if gone else "fewer would not fill the machine's vectors"
        changes.append(LayerChange(cell.name, change, len(cell.units), len(cell.units) - gone, reason))
    return changes


def mask_changes(weights: Sequence[Weight], chosen: Mapping[GenericConst, Array]) -> list[LayerChange]:
    changes = []
    for index, weight in enumerate(weights):
        mask = chosen[weight.constant]
        name = weight.name or f"weight_{index} {'x'.join(map(str, mask.shape))}"
        zeros = int(mask.size - np.count_nonzero(mask))
        changes.append(LayerChange(name, f"{zeros} weights zero" if zeros else "", mask.size, mask.size - zeros))
    return changes
