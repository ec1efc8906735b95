"""Random inputs for any model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from compiler.errors import InputError
from compiler.runtime.fitting_sizes import fitting_sizes
from compiler.support.formula import FormulaError, parsed

if TYPE_CHECKING:
    from compiler.artifact.manifest import IndexRequirement, Requirement, TensorDescription
    from compiler.frontends.imported_model import TensorSpec


MAX_REFERENCE_BYTES = 1 << 30
"""Limit on generated inputs: larger examples would dwarf the module, or not fit in memory."""
_SYMBOLIC_SIZE = 2
_EXTENDED = {
    name: np.dtype(getattr(ml_dtypes, name))
    for name in ("bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "int4", "uint4")
}


def random_inputs(
    specs: Sequence[TensorSpec | TensorDescription],
    *,
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
    indices: Sequence[IndexRequirement] = (),
    relations: Sequence[Requirement] = (),
) -> dict[str, np.ndarray]:
    """Inputs by name: standard normal floats, random booleans, and integers.

    Integers known to be indices (token ids) are spread over their whole range; others are 0 or 1, which are valid
    indices and counts nearly everywhere. Integer and boolean inputs named like masks are all ones.
    Raises InputError if they would need more than `MAX_REFERENCE_BYTES`.

    Args:
        sizes: sizes of symbolic dimensions by name; 2 for missing ones, or a size that the relations allow.
        indices: the inputs that are indices, with their ranges, as in `ImportedModel` and `Manifest`.
        relations: requirements on sizes, in the same form.
    """
    generator = np.random.default_rng(seed)
    symbols = {size for spec in specs for size in spec.shape if isinstance(size, str)}
    preferred = dict.fromkeys(symbols, _SYMBOLIC_SIZE) | dict(sizes or {})
    known = fitting_sizes(preferred, symbols - set(sizes or {}), relations)
    shapes = [tuple(size if isinstance(size, int) else known[size] for size in spec.shape) for spec in specs]
    largest = 8 * sum(math.prod(shape) for shape in shapes)  # drawn as 64-bit numbers
    if largest > MAX_REFERENCE_BYTES:
        raise InputError(f"random inputs would need {largest} bytes", "pass your own inputs")
    return {
        spec.name: _random_array(spec, shape, generator, _range(spec.name, indices, known))
        for spec, shape in zip(specs, shapes, strict=True)
    }


def _range(name: str, indices: Sequence[IndexRequirement], sizes: Mapping[str, int]) -> tuple[int, int]:
    """The range, excluding its end, for the integers of an input."""
    low, high, spread = 0, 1 << 31, False
    for requirement in indices:
        if requirement.input != name:
            continue
        values = {symbol: sizes[at] for symbol, at in requirement.symbols.items() if at in sizes}
        try:
            high = min(high, parsed(requirement.size).value(values))
            low = max(low, parsed(requirement.least).value(values)) if requirement.least is not None else low
        except FormulaError:
            return 0, 2
        # Without a minimum they are indices of an axis; with one they may be lengths or counts, which are kept small.
        spread = spread or requirement.least is None
    return (low, max(high, low + 1)) if spread else (low, max(min(high, low + 2), low + 1))


def _random_array(
    spec: TensorSpec | TensorDescription, shape: tuple[int, ...], generator: np.random.Generator, span: tuple[int, int]
) -> np.ndarray:
    dtype = _EXTENDED.get(spec.dtype) or np.dtype(spec.dtype)
    if dtype.kind in "biu" and "mask" in spec.name.lower():
        return np.ones(shape, dtype)
    if dtype.kind == "b":
        return generator.integers(0, 2, shape).astype(bool)
    if dtype.kind in "iu":
        return generator.integers(span[0], min(span[1], np.iinfo(dtype).max), shape).astype(dtype)
    if spec.dtype in {"int4", "uint4"}:
        return generator.integers(0, 2, shape).astype(dtype)
    return generator.standard_normal(shape).astype(dtype)
