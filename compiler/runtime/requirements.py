"""What a model needs of its inputs beyond names, types and ranks: checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compiler.artifact.dtypes import ELEMENT_TYPES
from compiler.artifact.manifest import IndexRequirement, Requirement, TensorDescription
from compiler.errors import ArtifactError, InputError
from compiler.profiling.formula import evaluate
from compiler.runtime.tensors import array_over

Sizes = dict[str, int]


class RequirementChecker:
    """Checks inputs against a module's requirements; sizes that were found good last are not checked again.

    `any` is False when there is nothing to check.
    """

    def __init__(
        self,
        inputs: Sequence[TensorDescription],
        requirements: Sequence[Requirement],
        indices: Sequence[IndexRequirement],
    ) -> None:
        self._requirements = tuple(requirements)
        places = {description.name: position for position, description in enumerate(inputs)}
        self._indices = [
            (places[each.input], ELEMENT_TYPES[inputs[places[each.input]].dtype], each)
            for each in indices
            if each.input in places
        ]
        self._good: tuple[Sizes, tuple[tuple[int, int], ...]] | None = None
        self.any = bool(self._requirements or self._indices)

    def check(self, sizes: Sizes, tensors: Sequence[Any]) -> None:
        """Check the sizes of the symbolic dimensions, and the engine's tensors of the inputs.

        Raises:
            InputError: they do not fit; says what needs which relation.
        """
        good = self._good
        if good is None or sizes != good[0]:
            for requirement in self._requirements:
                _check_relation(requirement, sizes)
            self._good = good = sizes, tuple(_range(index, sizes) for _, _, index in self._indices)
        for (position, element, index), (low, high) in zip(self._indices, good[1], strict=True):
            values = array_over(tensors[position], element)
            if values.size:
                _check_values(index, (int(values.min()), int(values.max())), low, high)


def _range(index: IndexRequirement, sizes: Mapping[str, int]) -> tuple[int, int]:
    """(lowest value, the one after the highest)."""
    high = _value(index.size, index.symbols, sizes)
    return -high if index.least is None else _value(index.least, index.symbols, sizes), high


def _check_values(index: IndexRequirement, found: tuple[int, int], low: int, high: int) -> None:
    least, largest = found
    if least < low or largest >= high:
        wrong = least if least < low else largest
        if index.least is None:
            what, hint = f"the index {wrong}", "its elements choose entries of an axis of that size"
        else:
            what, hint = f"the value {wrong}", "its elements are indices, lengths or counts"
        raise InputError(f"{index.where}: input {index.input!r} holds {what}, outside of [{low}, {high})", hint)


def _check_relation(requirement: Requirement, sizes: Mapping[str, int]) -> None:
    left = _value(requirement.left, requirement.symbols, sizes)
    right = _value(requirement.right, requirement.symbols, sizes)
    first, second = (_term(*each, requirement) for each in ((requirement.left, left), (requirement.right, right)))
    holds, text = {
        "equal": (left == right, f"{first} must equal {second}"),
        "at least": (left >= right, f"{first} must be at least {second}"),
        "broadcast": (left == right or 1 in (left, right), f"{first} and {second} must be equal, or one of them 1"),
    }[requirement.relation]
    if not holds:
        given = ", ".join(f"{dimension} = {sizes[dimension]}" for dimension in requirement.symbols.values())
        raise InputError(f"{requirement.where}: {text}", f"the inputs' sizes do not fit this model: {given}")


def _value(formula: str, symbols: Mapping[str, str], sizes: Mapping[str, int]) -> int:
    try:
        return evaluate(formula, {name: sizes[dimension] for name, dimension in symbols.items()})
    except (KeyError, ValueError) as error:
        raise ArtifactError(f"the module's requirement {formula!r} makes no sense: {error}") from error


def _term(formula: str, value: int, requirement: Requirement) -> str:
    """A formula and its value, the dimension's own name where it is one."""
    name = requirement.symbols.get(formula, formula)
    return name if name == str(value) else f"{name} = {value}"
