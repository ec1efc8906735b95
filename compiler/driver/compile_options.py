"""The options of a compilation, and its target: what `compile` checks before it builds."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import targets
from compiler.errors import OptionError, ToolchainError, UnknownTargetError, type_text
from compiler.frontends.imported_model import ImportedModel, SizeRequirement
from compiler.passes.rewriting.size_variants import symbolic_dimensions, with_variants
from compiler.support.formula import FormulaError, parsed
from compiler.support.processing import Processing
from compiler.support.progress_bar import silent

if TYPE_CHECKING:
    from compiler.passes.registry import PassLike
    from compiler.records.library import RecordSource

Progress = Callable[[str], None]
# What a target's machine needs for a lower precision, and targets that have it.
_NEEDS = {
    "bf16": ("bf16_dot_product", "bfloat16 dot product", "znver4, sapphire-rapids, a100, h100"),
    "float16": ("float16_product", "fast products of float16", "sapphire-rapids, granite-rapids, t4, a100, h100"),
}


@dataclass(frozen=True, kw_only=True)
class CompileOptions:
    """The options of `compile` but for those of importing; it documents the fields. `name`: the
    module's, that of the source when None."""

    name: str | None = None
    sizes: Sizes | None = None
    processing: Processing | None = None
    precision: str | None = None
    sequences: bool = False
    cache: str | None = None
    calibration: str | Path | None = None
    adapters: Sequence[str | Path] | Mapping[str, str | Path] = ()
    threads: int | None = None
    passes: Mapping[str, PassLike | None] | None = None
    dump: str | Path | None = None
    verify: bool = False
    reference_inputs: Mapping[str, np.ndarray] | None = None
    records: RecordSource = None
    progress: Progress | None = None

    @property
    def report(self) -> Progress:
        """Receives the name of each step."""
        return self.progress if self.progress is not None else silent


def find_target(target: str | targets.Target, cores: int | None = None) -> targets.Target:
    """The target of that name, scheduled for `cores` threads.

    Raises UnknownTargetError with suggestions, and OptionError for what is neither a name nor a target.
    """
    if isinstance(target, targets.Target):
        return target
    if not isinstance(target, str):
        raise OptionError(f"{type_text(target)} is not a target", "give a name of `tensorwright targets`, or a Target")
    with translated_target_errors():
        return targets.get(target, cores=cores)


def check_precision(target: targets.Target, precision: str) -> None:
    """Raise OptionError unless a target computes in a precision of `PRECISIONS`."""
    if precision in _NEEDS:
        needed, what, having = _NEEDS[precision]
        if not getattr(target.machine, needed):
            hint = f"name a target that has ({having}), or leave precision at float32"
            if precision == "float16":
                faster = ' "bf16" is computed here, and' if target.machine.bf16_dot_product else ""
                hint = (
                    f"targets that have these: {having};{faster} weights are stored in float16 by "
                    f'tensorwright.quantize(model, scheme="float16"), or `tensorwright quantize --scheme float16`'
                )
            raise OptionError(f"target {target.name!r} has no {what}", hint)


@contextmanager
def translated_target_errors() -> Iterator[None]:
    """Translates errors of the lower layers into errors of this package."""
    try:
        yield
    except targets.UnknownTarget as error:
        raise UnknownTargetError(error.message, error.hint) from error
    except targets.TargetError as error:
        raise ToolchainError(error.message, error.hint) from error


def model_name(source: object) -> str:
    """A name for a source that `compile` takes: of its file, its graph, or its class."""
    if isinstance(source, str | Path):
        return Path(source).stem
    from compiler.frontends.imported_model import ImportedModel

    name = getattr(source if isinstance(source, ImportedModel) else getattr(source, "graph", None), "name", None)
    name = name if isinstance(name, str) and name else type(source).__name__
    return re.sub(r"[^\w.-]+", "_", name)[:200]


Sizes = Mapping[str, Sequence[int | Sequence[int]]]
"""Sizes by symbolic dimension (`{"batch": [1, 8]}`), or whole shapes by input (`{"x": [(1, 3, 224, 224)]}`)."""

MOST_VARIANTS = 32
Variant = dict[str, int]


def specialized(model: ImportedModel, sizes: Sizes) -> ImportedModel:
    """The model with code of its own for each combination of the given sizes.

    Raises:
        OptionError: a name is neither a dynamic dimension nor an input, a size does not fit or the model cannot run
            with it,
            or there are more than `MOST_VARIANTS` combinations.
    """
    if not isinstance(sizes, Mapping):
        raise OptionError(f"sizes= takes a dict, not {type_text(sizes)}", 'as in sizes={"batch": [1, 8]}')
    choices = [_choices(model, name, given) for name, given in sizes.items()]
    variants = list(_combined(choices))
    if len(variants) > MOST_VARIANTS:
        raise OptionError(f"sizes= asks for {len(variants)} variants of the code", f"give at most {MOST_VARIANTS}")
    if choices and not variants:
        raise OptionError("sizes= gives the inputs shapes that contradict each other", "equal names are equal sizes")
    for variant in variants:
        _check(model, variant)
    return replace(model, mod=with_variants(model.mod, variants)) if variants else model


def _choices(model: ImportedModel, name: str, given: object) -> list[Variant]:
    """Variants that one entry of `sizes=` asks for."""
    if isinstance(given, str) or not isinstance(given, Sequence) or not given:
        raise OptionError(f"sizes[{name!r}] is {given!r}", "give a list, as in [1, 8]")
    by_input = {spec.name: spec.shape for spec in model.inputs}
    if name in by_input:
        is_one_shape = len(given) == len(by_input[name]) and not any(isinstance(each, Sequence) for each in given)
        shapes = [tuple(given)] if is_one_shape else given
        return [_variant_of_shape(name, by_input[name], shape) for shape in shapes]
    if name not in symbolic_dimensions(model.mod["main"].params):
        inputs = "; ".join(map(str, model.inputs))
        raise OptionError(f"sizes: {name!r} is neither an input nor a dynamic dimension", f"the model takes {inputs}")
    return [{name: _size(name, size)} for size in given]


def _variant_of_shape(name: str, declared: Sequence[int | str], shape: object) -> Variant:
    wanted = f"input {name!r} has the shape [{', '.join(map(str, declared))}]"
    if not isinstance(shape, Sequence) or isinstance(shape, str) or len(shape) != len(declared):
        raise OptionError(f"sizes[{name!r}] holds {shape!r}, and {wanted}", "give one shape, or several, of that rank")
    variant: Variant = {}
    for size, own in zip(shape, declared, strict=True):
        number = _size(name, size)
        if isinstance(own, str) and own.isidentifier():
            if variant.setdefault(own, number) != number:
                raise OptionError(f"sizes[{name!r}] holds {tuple(shape)}, and {wanted}", "equal names are equal sizes")
        elif isinstance(own, int) and own != number:
            raise OptionError(f"sizes[{name!r}] holds {tuple(shape)}, and {wanted}", "it cannot be changed here")
    return variant


def _size(name: str, size: object) -> int:
    if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 0:
        raise OptionError(f"sizes[{name!r}] holds {size!r}, which is not a size", "give whole numbers, as in [1, 8]")
    return int(size)


def _combined(choices: Sequence[list[Variant]]) -> Iterator[Variant]:
    """Each combination of a choice of every entry whose sizes agree, once."""
    seen: list[Variant] = []
    for combination in itertools.product(*choices):
        variant: Variant = {}
        agrees = all(variant.setdefault(name, size) == size for each in combination for name, size in each.items())
        if agrees and variant and variant not in seen:
            seen.append(variant)
            yield variant


def _check(model: ImportedModel, variant: Variant) -> None:
    """Raise OptionError where the model cannot run with these sizes."""
    for requirement in model.requirements:
        if not set(requirement.symbols.values()) <= set(variant):
            continue
        sizes = {name: variant[dimension] for name, dimension in requirement.symbols.items()}
        if not _holds(requirement, sizes):
            given = ", ".join(f"{name} = {size}" for name, size in variant.items())
            raise OptionError(f"sizes: the model cannot run with {given}: {requirement.where}", "give other sizes")


def _holds(requirement: SizeRequirement, sizes: Mapping[str, int]) -> bool:
    try:
        left, right = (parsed(formula).value(sizes) for formula in (requirement.left, requirement.right))
    except FormulaError:
        return False
    if requirement.relation == "broadcast":
        return left == right or 1 in (left, right)
    return left == right if requirement.relation == "equal" else left >= right
