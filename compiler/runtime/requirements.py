"""Requirements on a model's inputs beyond names, types and ranks, checked before a run.

The C++ runtime makes the same checks, with the same messages (`device/cpp/requirements.cc`): change both, and the table
of cases that tests both (`tests/compiler/runtime/requirement_cases.json`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compiler.artifact.dtypes import ELEMENT_TYPES, ElementType
from compiler.artifact.manifest import IndexRequirement, Requirement, TensorDescription
from compiler.errors import ArtifactError, InputError
from compiler.runtime.tensors import array_over
from compiler.support.formula import FormulaError, parsed

Sizes = dict[str, int]
_FEW = 32  # numbers that Python compares faster than NumPy


@dataclass(frozen=True)
class _Size:
    """A formula over dimensions of the inputs, and what needs it."""

    formula: str
    symbols: Mapping[str, str]
    where: str

    def check(self, dimensions: set[str]) -> None:
        """Raise ArtifactError unless it is a formula of the inputs' dimensions."""
        try:
            for name in sorted(parsed(self.formula).names):
                if self.symbols.get(name) not in dimensions:
                    raise FormulaError(f"{name!r} is not a dimension of an input")
        except FormulaError as error:
            raise ArtifactError(
                f"the module's requirement {self.formula!r} is not valid: {error}", "compile the model again"
            ) from error

    def value(self, sizes: Mapping[str, int]) -> int:
        """Its value. Raises InputError where it has none."""
        try:
            return parsed(self.formula).value({name: sizes[at] for name, at in self.symbols.items() if at in sizes})
        except FormulaError as error:
            raise InputError(f"{self.where}: {error}", _given(self.symbols, sizes)) from error


@dataclass(frozen=True)
class _Index:
    """The position of an input that holds indices, its element type, and the formulas of their range."""

    position: int
    element: ElementType
    requirement: IndexRequirement
    size: _Size
    least: _Size | None

    def range(self, sizes: Mapping[str, int]) -> tuple[int, int]:
        """(lowest value, the one after the highest). Raises InputError where a formula has no value."""
        high = self.size.value(sizes)
        if self.least is not None:
            return self.least.value(sizes), high
        return -max(0, high), max(0, high)


class RequirementChecker:
    """Checks inputs against a module's requirements; sizes that were found good last are not checked again.

    `any` is False when there is nothing to check.

    Raises:
        ArtifactError: a requirement is not a formula of the inputs' dimensions, or indices are not those of an input.
    """

    def __init__(
        self,
        inputs: Sequence[TensorDescription],
        requirements: Sequence[Requirement],
        indices: Sequence[IndexRequirement],
    ) -> None:
        dimensions = {size for description in inputs for size in description.shape if isinstance(size, str)}
        self._relations = [_relation(each, dimensions) for each in requirements]
        self._indices = [_index(each, inputs, dimensions) for each in indices]
        self._good: tuple[Sizes, tuple[tuple[int, int], ...]] | None = None
        self.any = bool(self._relations or self._indices)

    def check(self, sizes: Sizes, tensors: Sequence[Any]) -> None:
        """Check the sizes of the symbolic dimensions, and TVM's tensors of the inputs.

        Raises:
            InputError: they do not fit; says what needs which relation.
        """
        good = self._good
        if good is None or sizes != good[0]:
            for requirement, left, right in self._relations:
                _check_relation(requirement, left.value(sizes), right.value(sizes), sizes)
            self._good = good = sizes, tuple(index.range(sizes) for index in self._indices)
        for index, (low, high) in zip(self._indices, good[1], strict=True):
            values = array_over(tensors[index.position], index.element)
            if values.size and not _all_within(values, low, high):
                _check_values(index.requirement, _extremes(values), low, high)


def _relation(each: Requirement, dimensions: set[str]) -> tuple[Requirement, _Size, _Size]:
    left, right = (_Size(formula, each.symbols, each.where) for formula in (each.left, each.right))
    left.check(dimensions)
    right.check(dimensions)
    return each, left, right


def _index(each: IndexRequirement, inputs: Sequence[TensorDescription], dimensions: set[str]) -> _Index:
    size = _Size(each.size, each.symbols, each.where)
    size.check(dimensions)
    least = None if each.least is None else _Size(each.least, each.symbols, each.where)
    if least is not None:
        least.check(dimensions)
    for position, description in enumerate(inputs):
        element = ELEMENT_TYPES[description.dtype]
        if description.name == each.input and element.numpy.kind in "iu" and description.carrier is None:
            return _Index(position, element, each, size, least)
    raise ArtifactError(
        f"the module's indices {each.input!r} are not an input of whole numbers", "compile the model again"
    )


def _all_within(values: np.ndarray, low: int, high: int) -> bool:
    """True if one pass shows that many numbers lie in [max(low, 0), high): as unsigned ones, negative numbers are
    large."""
    if values.size <= _FEW or low > 0:
        return False
    return bool(values.view(f"u{values.itemsize}").max() < high)


def _extremes(values: np.ndarray) -> tuple[int, int]:
    """The least and the largest of whole numbers, one at least."""
    if values.size <= _FEW:
        numbers = values.ravel().tolist()
        return min(numbers), max(numbers)
    return int(values.min()), int(values.max())


def _check_values(index: IndexRequirement, found: tuple[int, int], low: int, high: int) -> None:
    least, largest = found
    if least < low or largest >= high:
        wrong = least if least < low else largest
        if index.least is None:
            what, hint = f"the index {wrong}", "its elements choose entries of an axis of that size"
        else:
            what, hint = f"the value {wrong}", "its elements are indices, lengths or counts"
        raise InputError(f"{index.where}: input {index.input!r} holds {what}, outside of [{low}, {high})", hint)


def _check_relation(requirement: Requirement, left: int, right: int, sizes: Mapping[str, int]) -> None:
    first, second = (_term(*each, requirement) for each in ((requirement.left, left), (requirement.right, right)))
    holds, text = {
        "equal": (left == right, f"{first} must equal {second}"),
        "at least": (left >= right, f"{first} must be at least {second}"),
        "broadcast": (left == right or 1 in (left, right), f"{first} and {second} must be equal, or one of them 1"),
    }[requirement.relation]
    if not holds:
        raise InputError(f"{requirement.where}: {text}", _given(requirement.symbols, sizes))


def _given(symbols: Mapping[str, str], sizes: Mapping[str, int]) -> str:
    given = sorted({at for at in symbols.values() if at in sizes})
    return f"the inputs' sizes do not fit this model: {', '.join(f'{at} = {sizes[at]}' for at in given)}"


def _term(formula: str, value: int, requirement: Requirement) -> str:
    """A formula and its value, the dimension's own name where it is one."""
    name = requirement.symbols.get(formula, formula)
    return name if name == str(value) else f"{name} = {value}"
