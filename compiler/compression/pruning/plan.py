"""Selection of what to prune, shared by graphs and modules in training."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm.ir import GenericConst, IRModule

from compiler.compression.pruning.dependencies import Cell, Dependencies
from compiler.compression.pruning.shrink import kept
from compiler.compression.quantization.edit import edit_main, with_operands
from compiler.compression.report import LayerChange
from compiler.errors import NothingGainedError, OptionError
from compiler.passes.rewriting.graph import Call, Expr, Var
from compiler.passes.rewriting.matching import Array, array_of, as_constant

CRITERIA = ("magnitude", "gradient", "second-order", "influence")


@dataclass(frozen=True)
class Plan:
    """The caller's choices; `kind` is None for patterns that shrink the graph."""

    pattern: str
    kind: Pattern | None
    criterion: str
    scope: str
    steps: int

    def cells(self, found: Dependencies, usable: Collection[GenericConst] | None = None) -> list[Cell]:
        """The cells to prune. Raises NothingGainedError if there are none. `usable`: weights that may lose units; None:
        all."""
        cells = [cell for cell in found.cells if cell.kind == self.pattern and len(cell.units) > 1]
        if usable is not None:
            bound = found.units_of(each.constant for each in found.producers if each.constant not in usable)
            cells = [cell for cell in cells if not bound.intersection(cell.units.tolist())]
        if not cells:
            raise NothingGainedError(
                f"the model has no {self.pattern} that can be removed",
                "channels of an output, or normalized together, cannot be removed; other patterns may apply",
            )
        return cells

    def units(self, cells: Sequence[Cell], scores: Array, amount: float, lanes: int, gone: Collection[int] = ()) -> Any:
        return select_units(cells, scores, amount, self.scope, lanes, gone)

    def masks(
        self, weights: Sequence[Weight], saliency: Mapping[GenericConst, Array], amount: float
    ) -> dict[GenericConst, Array]:
        """Mask of each weight, in the weight's own shape."""
        assert self.kind is not None
        if not weights:
            raise NothingGainedError(
                "the model has no weights to prune", "only matmuls and convolutions with constant weights have them"
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
    """Raise NothingGainedError if nothing was removed."""
    if not any(change.change for change in changes):
        raise NothingGainedError(
            f"{plan.title(amount)} removes nothing: no layer is large enough for it",
            "give a larger amount, or a smaller pattern",
        )


def unit_masks(found: Dependencies, removed: Array, weights: Collection[GenericConst]) -> dict[GenericConst, Array]:
    """Masks in the weights' own shapes, with zeros where shrinking would cut."""
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


# Allowed positions of a weight's zeros: anywhere, N of every M, or whole blocks.

Mask = NDArray[np.bool_]  # True for weights that are kept
STRUCTURES = ("channels", "heads", "layers")
_HINT = 'give "channels", "heads", "layers", "elements", N of M kept ("2:4"), or a block ("16x1": results by operands)'


@dataclass(frozen=True)
class Pattern:
    """A kind of zeros.

    Attributes:
        keep, of: at most `keep` of every `of` operands of a result are kept; 0 without such a rule.
        rows, columns: size of blocks of results by operands that are removed as a whole.
    """

    name: str
    keep: int = 0
    of: int = 0
    rows: int = 1
    columns: int = 1

    @property
    def amount(self) -> float | None:
        """The fraction of zeros if the pattern determines it, otherwise None."""
        return 1 - self.keep / self.of if self.of else None


def parse_pattern(text: str) -> Pattern:
    """Parse a pattern. Raises OptionError that lists the known patterns."""
    if text == "elements":
        return Pattern(text)
    if match := re.fullmatch(r"(\d+):(\d+)", text):
        keep, of = int(match[1]), int(match[2])
        if 0 < keep < of:
            return Pattern(text, keep=keep, of=of)
    if match := re.fullmatch(r"(\d+)x(\d+)", text):
        rows, columns = int(match[1]), int(match[2])
        if rows > 0 and columns > 0 and rows * columns > 1:
            return Pattern(text, rows=rows, columns=columns)
    raise OptionError(f"pattern={text!r} is not supported", _HINT)


def masks(pattern: Pattern, saliency: list[Array], amount: float, scope: str) -> list[Mask]:
    """Masks of weights given as matrices (results, operands); the least salient weights are removed first.

    Args:
        saliency: saliency of each weight's elements, non-negative.
        amount: the fraction to remove, of each weight (`scope` "layer") or of all together; "2:4" etc. have their own
            final amount, and approach it as `amount` grows to it.
    """
    if pattern.of:
        return [_n_of_m(pattern, each, amount) for each in saliency]
    sides = [(min(pattern.rows, each.shape[0]), min(pattern.columns, each.shape[1])) for each in saliency]
    sums = [_blocks(each, *block) for each, block in zip(saliency, sides, strict=True)]
    if scope == "global":
        flat = np.concatenate([each.ravel() for each in sums])
        cut = _smallest(flat, amount)
        parts = np.split(cut, np.cumsum([each.size for each in sums])[:-1])
        gone = [part.reshape(each.shape) for part, each in zip(parts, sums, strict=True)]
    else:
        gone = [_smallest(each.ravel(), amount).reshape(each.shape) for each in sums]
    return [
        ~np.repeat(np.repeat(each, rows, 0), columns, 1)[: whole.shape[0], : whole.shape[1]]
        for each, whole, (rows, columns) in zip(gone, saliency, sides, strict=True)
    ]


def _smallest(values: Array, amount: float) -> Mask:
    """Mark the round(amount * size) smallest values; ties go to the first."""
    result = np.zeros(values.size, np.bool_)
    result[np.argsort(values, kind="stable")[: round(amount * values.size)]] = True
    return result


def _blocks(values: Array, rows: int, columns: int) -> Array:
    """Sums over blocks; blocks at the edge are smaller, and their sums are scaled up."""
    padded = np.pad(values, ((0, -values.shape[0] % rows), (0, -values.shape[1] % columns)))
    counts = np.pad(np.ones(values.shape), ((0, -values.shape[0] % rows), (0, -values.shape[1] % columns)))
    shape = (padded.shape[0] // rows, rows, padded.shape[1] // columns, columns)
    return padded.reshape(shape).sum((1, 3)) / counts.reshape(shape).sum((1, 3))


def _n_of_m(pattern: Pattern, values: Array, amount: float) -> Mask:
    """Mask of every `of` operands; a shorter group at the end is not pruned."""
    wanted = 1 - pattern.keep / pattern.of
    gone = round((pattern.of - pattern.keep) * min(1.0, amount / wanted))
    result = np.ones(values.shape, np.bool_)
    full_columns = values.shape[1] // pattern.of * pattern.of
    groups = values[:, :full_columns].reshape(values.shape[0], -1, pattern.of)
    order = np.argsort(groups, axis=2, kind="stable")[..., :gone]
    kept = np.ones(groups.shape, np.bool_)
    np.put_along_axis(kept, order, False, axis=2)
    result[:, :full_columns] = kept.reshape(values.shape[0], full_columns)
    return result


# Selection of units: the least salient ones of each cell, or of all, in multiples that suit the machine's vectors.

SCOPES = ("layer", "global")
_MIN_KEPT = 0.1  # fraction of a cell, if all cells share one budget: removing a whole layer breaks the network


def select_units(
    cells: Sequence[Cell], scores: Array, amount: float, scope: str, lanes: int, gone: Collection[int] = ()
) -> NDArray[np.bool_]:
    """A mask of the units to remove; entry 0 is not a unit.

    Args:
        scores: score of each unit; the lowest are removed first.
        amount: the fraction of the units to remove, of each cell (`scope` "layer") or of all together ("global", with
            the scores of a cell divided by their mean first, since layers differ in scale).
        lanes: number of elements in a vector of the machine: larger counts are kept in multiples of it.
        gone: units removed in an earlier step.
    """
    scores = scores.copy()
    scores[list(gone)] = -np.inf
    removed = np.zeros(len(scores), np.bool_)
    counts = (
        _global_counts(cells, scores, amount)
        if scope == "global"
        else [round(amount * len(cell.units)) for cell in cells]
    )
    for cell, count in zip(cells, counts, strict=True):
        count = rounded_count(count, len(cell.units), cell.width, lanes)
        order = np.argsort(scores[cell.units], kind="stable")
        removed[cell.units[order[:count]]] = True
    return removed


def _global_counts(cells: Sequence[Cell], scores: Array, amount: float) -> list[int]:
    relative, owners = [], []
    for index, cell in enumerate(cells):
        cell_scores = scores[cell.units]
        known = cell_scores[np.isfinite(cell_scores)]
        mean = float(known.mean()) if known.size else 1.0
        ordered = np.sort(cell_scores / (mean or 1.0))
        ordered = ordered[: int(len(ordered) * (1 - _MIN_KEPT))]
        relative.append(ordered)
        owners.append(np.full(len(ordered), index))
    if not relative:
        return []
    total = sum(len(cell.units) for cell in cells)
    order = np.argsort(np.concatenate(relative), kind="stable")[: round(amount * total)]
    counts: list[int] = np.bincount(np.concatenate(owners)[order], minlength=len(cells)).tolist()
    return counts


def rounded_count(count: int, size: int, width: int, lanes: int) -> int:
    """Number of the `size` units to remove so that the rest fills vectors and is not empty."""
    step = max(1, lanes // np.gcd(width, lanes))
    remaining = size - count
    if remaining > step:
        remaining = -(-remaining // step) * step
    elif size > step and remaining > step // 2:
        remaining = step
    return size - max(1, min(remaining, size))


# Constant weights of matmuls and convolutions as matrices of results by operands.

_FEWEST = 256  # elements; smaller weights cost nothing, and pruning them hurts


@dataclass(frozen=True)
class Weight:
    """One weight. `axis` indexes the results; `name` is for reports, "" if the model has none."""

    constant: GenericConst
    axis: int
    name: str = ""

    def matrix(self, values: Array) -> Array:
        """(results, operands); operands of a convolution by position in the kernel, then by channel."""
        moved = np.moveaxis(values, self.axis, 0)
        if moved.ndim > 2:
            moved = np.moveaxis(moved, 1, -1)
        return moved.reshape(moved.shape[0], -1)

    def restored(self, matrix: Array) -> Array:
        """The inverse of `matrix`."""
        shape = list(array_of(self.constant).shape)
        moved = [shape.pop(self.axis), *shape]
        if len(moved) > 2:
            moved = [moved[0], *moved[2:], moved[1]]
        values = matrix.reshape(moved)
        if len(moved) > 2:
            values = np.moveaxis(values, -1, 1)
        return np.ascontiguousarray(np.moveaxis(values, 0, self.axis))


def weights_of(found: Dependencies) -> list[Weight]:
    """The weights of matmuls and convolutions, each once, except tiny and vector ones."""
    seen: dict[GenericConst, Weight] = {}
    for producer in found.producers:
        array = array_of(producer.constant)
        if array.ndim >= 2 and array.size >= _FEWEST and array.dtype == np.float32:
            seen.setdefault(
                producer.constant, Weight(producer.constant, producer.axis, found.names.get(producer.constant, ""))
            )
    return list(seen.values())


def with_constants(mod: IRModule, replaced: dict[GenericConst, Array]) -> IRModule:
    """`mod` with constants of outermost calls replaced by others of the same shape and dtype."""
    new = {constant: as_constant(array) for constant, array in replaced.items()}

    def edit(variable: Var, call: Call, emit: object) -> Expr | None:
        operands = {i: new[each] for i, each in enumerate(call.args) if isinstance(each, GenericConst) and each in new}
        return with_operands(call, operands) if operands else None

    return edit_main(mod, edit)
