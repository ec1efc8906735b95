"""Where the zeros of a weight may lie: anywhere, N of every M, or whole blocks."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compiler.errors import OptionError
from compiler.passes.rewriting.matching import Array

Mask = NDArray[np.bool_]  # True where the weight stays
STRUCTURES = ("channels", "heads", "layers")
_HINT = (
    'give "channels", "heads", "layers", "elements", N of M that stay ("2:4"), or a block ("16x1": results by operands)'
)


@dataclass(frozen=True)
class Pattern:
    """A kind of zeros.

    Attributes:
        keep, of: at most `keep` of every `of` operands of a result stay; 0 where there is no such rule.
        rows, columns: a block of results by operands goes or stays as one.
    """

    name: str
    keep: int = 0
    of: int = 0
    rows: int = 1
    columns: int = 1

    @property
    def amount(self) -> float | None:
        """The share of zeros where the pattern itself says it."""
        return 1 - self.keep / self.of if self.of else None


def parse_pattern(text: str) -> Pattern:
    """Raises OptionError with what there is."""
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
    """What stays of weights given as matrices (results, operands), the least salient going first.

    Args:
        saliency: of each weight's elements, non-negative.
        amount: the share that goes, of each weight (`scope` "layer") or of all together; "2:4" and the like have
            their own in the end, and reach it as `amount` grows to it.
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
    """Marks round(amount * size) of the smallest values; of equal ones, the first."""
    result = np.zeros(values.size, np.bool_)
    result[np.argsort(values, kind="stable")[: round(amount * values.size)]] = True
    return result


def _blocks(values: Array, rows: int, columns: int) -> Array:
    """Sums over blocks; those at the edge are smaller, and their sums scaled up."""
    padded = np.pad(values, ((0, -values.shape[0] % rows), (0, -values.shape[1] % columns)))
    counts = np.pad(np.ones(values.shape), ((0, -values.shape[0] % rows), (0, -values.shape[1] % columns)))
    shape = (padded.shape[0] // rows, rows, padded.shape[1] // columns, columns)
    return padded.reshape(shape).sum((1, 3)) / counts.reshape(shape).sum((1, 3))


def _n_of_m(pattern: Pattern, values: Array, amount: float) -> Mask:
    """Of every `of` operands; a group at the end that is shorter stays whole."""
    wanted = 1 - pattern.keep / pattern.of
    gone = round((pattern.of - pattern.keep) * min(1.0, amount / wanted))
    result = np.ones(values.shape, np.bool_)
    whole = values.shape[1] // pattern.of * pattern.of
    groups = values[:, :whole].reshape(values.shape[0], -1, pattern.of)
    order = np.argsort(groups, axis=2, kind="stable")[..., :gone]
    kept = np.ones(groups.shape, np.bool_)
    np.put_along_axis(kept, order, False, axis=2)
    result[:, :whole] = kept.reshape(values.shape[0], whole)
    return result
