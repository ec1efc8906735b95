"""Random inputs that any model can be tried with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from compiler.errors import InputError

if TYPE_CHECKING:
    from compiler.artifact.manifest import TensorDescription
    from compiler.frontends.imported_model import TensorSpec

MAX_REFERENCE_BYTES = 1 << 30
"""Larger inputs are not made up: the example would dwarf the module, or not fit into memory."""
_SYMBOLIC_SIZE = 2
_EXTENDED = {
    name: np.dtype(getattr(ml_dtypes, name))
    for name in ("bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "int4", "uint4")
}


def random_inputs(
    specs: Sequence[TensorSpec | TensorDescription], *, seed: int = 0, sizes: Mapping[str, int] | None = None
) -> dict[str, np.ndarray]:
    """Inputs by name: standard normal floats, integers of 0 and 1 (which are valid indices, masks and counts nearly
    everywhere), random booleans.

    Args:
        sizes: of symbolic dimensions by name; 2 for those not named.

    Raises:
        InputError: they would take more than `MAX_REFERENCE_BYTES`.
    """
    generator = np.random.default_rng(seed)
    known = dict(sizes or {})
    shapes = [
        tuple(size if isinstance(size, int) else known.get(size, _SYMBOLIC_SIZE) for size in spec.shape)
        for spec in specs
    ]
    largest = 8 * sum(math.prod(shape) for shape in shapes)  # they are drawn as 64-bit numbers
    if largest > MAX_REFERENCE_BYTES:
        raise InputError(f"random inputs would take {largest} bytes", "give inputs of your own")
    return {spec.name: _random_array(spec, shape, generator) for spec, shape in zip(specs, shapes, strict=True)}


def _random_array(
    spec: TensorSpec | TensorDescription, shape: tuple[int, ...], generator: np.random.Generator
) -> np.ndarray:
    dtype = _EXTENDED.get(spec.dtype) or np.dtype(spec.dtype)
    if dtype.kind == "b":
        return generator.integers(0, 2, shape).astype(bool)
    if dtype.kind in "iu" or spec.dtype in {"int4", "uint4"}:
        return generator.integers(0, 2, shape).astype(dtype)
    return generator.standard_normal(shape).astype(dtype)
