"""`compile(sizes=...)`: sizes for which to generate specialized code."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from compiler.artifact.manifest import Requirement
from compiler.errors import OptionError, type_text
from compiler.frontends.imported_model import ImportedModel
from compiler.passes.rewriting.size_variants import symbolic_dimensions, with_variants
from compiler.support.formula import FormulaError, parsed

Sizes = Mapping[str, Sequence[int | Sequence[int]]]
"""Sizes by symbolic dimension (`{"batch": [1, 8]}`), or whole shapes by input (`{"x": [(1, 3, 224, 224)]}`)."""

MAX_VARIANTS = 32
Variant = dict[str, int]


def specialized(model: ImportedModel, sizes: Sizes) -> ImportedModel:
    """The model with specialized code for each combination of the given sizes. Raises OptionError if a name is neither
    a dynamic dimension nor an input, a size is not allowed, the model cannot run with it, or there are more than
    `MAX_VARIANTS` combinations."""
    if not isinstance(sizes, Mapping):
        raise OptionError(f"sizes= takes a dict, not {type_text(sizes)}", 'as in sizes={"batch": [1, 8]}')
    choices = [_choices(model, name, given) for name, given in sizes.items()]
    variants = list(_combined(choices))
    if len(variants) > MAX_VARIANTS:
        raise OptionError(f"sizes= asks for {len(variants)} variants of the code", f"give at most {MAX_VARIANTS}")
    if choices and not variants:
        raise OptionError("sizes= gives the inputs shapes that contradict each other", "equal names are equal sizes")
    for variant in variants:
        _check(model, variant)
    return replace(model, mod=with_variants(model.mod, variants)) if variants else model


def _choices(model: ImportedModel, name: str, value: object) -> list[Variant]:
    """Variants requested by one entry of `sizes=`."""
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise OptionError(f"sizes[{name!r}] is {value!r}", "give a list, as in [1, 8]")
    by_input = {spec.name: spec.shape for spec in model.inputs}
    if name in by_input:
        is_one_shape = len(value) == len(by_input[name]) and not any(isinstance(each, Sequence) for each in value)
        shapes = [tuple(value)] if is_one_shape else value
        return [_variant_of_shape(name, by_input[name], shape) for shape in shapes]
    if name not in symbolic_dimensions(model.mod["main"].params):
        inputs = "; ".join(map(str, model.inputs))
        raise OptionError(f"sizes: {name!r} is neither an input nor a dynamic dimension", f"the model takes {inputs}")
    return [{name: _size(name, size)} for size in value]


def _variant_of_shape(name: str, declared: Sequence[int | str], shape: object) -> Variant:
    expected = f"input {name!r} has the shape [{', '.join(map(str, declared))}]"
    if not isinstance(shape, Sequence) or isinstance(shape, str) or len(shape) != len(declared):
        raise OptionError(
            f"sizes[{name!r}] contains {shape!r}, but {expected}", "give one shape, or several, of that rank"
        )
    variant: Variant = {}
    for size, dimension in zip(shape, declared, strict=True):
        number = _size(name, size)
        if isinstance(dimension, str) and dimension.isidentifier():
            if variant.setdefault(dimension, number) != number:
                raise OptionError(
                    f"sizes[{name!r}] contains {tuple(shape)}, but {expected}", "equal names are equal sizes"
                )
        elif isinstance(dimension, int) and dimension != number:
            raise OptionError(f"sizes[{name!r}] contains {tuple(shape)}, but {expected}", "it cannot be changed here")
    return variant


def _size(name: str, size: object) -> int:
    if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 0:
        raise OptionError(f"sizes[{name!r}] contains {size!r}, which is not a size", "give whole numbers, as in [1, 8]")
    return int(size)


def _combined(choices: Sequence[list[Variant]]) -> Iterator[Variant]:
    """Each distinct combination of one choice per entry whose sizes agree."""
    seen: list[Variant] = []
    for combination in itertools.product(*choices):
        variant: Variant = {}
        agrees = all(variant.setdefault(name, size) == size for each in combination for name, size in each.items())
        if agrees and variant and variant not in seen:
            seen.append(variant)
            yield variant


def _check(model: ImportedModel, variant: Variant) -> None:
    """Raise OptionError if the model cannot run with these sizes."""
    for requirement in model.requirements:
        if not set(requirement.symbols.values()) <= set(variant):
            continue
        sizes = {name: variant[dimension] for name, dimension in requirement.symbols.items()}
        if not _holds(requirement, sizes):
            given = ", ".join(f"{name} = {size}" for name, size in variant.items())
            raise OptionError(f"sizes: the model cannot run with {given}: {requirement.where}", "give other sizes")


def _holds(requirement: Requirement, sizes: Mapping[str, int]) -> bool:
    try:
        left, right = (parsed(formula).value(sizes) for formula in (requirement.left, requirement.right))
    except FormulaError:
        return False
    if requirement.relation == "broadcast":
        return left == right or 1 in (left, right)
    return left == right if requirement.relation == "equal" else left >= right
