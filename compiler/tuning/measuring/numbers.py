"""Numerical checks for trials: random arguments, and comparison of results."""

from __future__ import annotations

import numpy as np

from compiler.artifact.dtypes import ELEMENT_TYPES
from compiler.tuning.measuring.messages import Argument

Array = np.ndarray

# Relative to the largest value of a result. A rule may only reassociate sums: in float32 that changes a sum of
# thousands of terms, and a Winograd transform, by some 1e-5 of the largest.
_TOLERANCES = {"float64": 1e-9, "float32": 2e-4, "float16": 2e-2, "bfloat16": 5e-2}


def tolerance(dtype: str) -> float:
    """The tolerance between configs, relative to a result's largest value; 0 for types that must agree exactly."""
    return _TOLERANCES.get(dtype, 0.0)


def random_values(argument: Argument, seed: int) -> Array:
    """Normally distributed floats; otherwise 0 and 1, which are valid masks and indices."""
    generator = np.random.default_rng(seed)
    dtype = ELEMENT_TYPES[argument.dtype].numpy
    if np.issubdtype(dtype, np.integer) or dtype.kind in "b":
        low = -1 if argument.dtype == "int8" else 0
        return generator.integers(low, 2, argument.shape).astype(dtype)
    return generator.standard_normal(argument.shape, dtype=np.float32).astype(dtype)


def poisoned(argument: Argument) -> Array:
    """Initial contents of an output: values that no correct result contains."""
    dtype = ELEMENT_TYPES[argument.dtype].numpy
    if np.issubdtype(dtype, np.integer) or dtype.kind in "b":
        return np.full(argument.shape, 1 if dtype.kind in "b" else 77, dtype)
    return np.full(argument.shape, np.nan, np.float32).astype(dtype)


def differs(actual: Array, expected: Array) -> str | None:
    """Describe how two results disagree; None if they agree."""
    if actual.shape != expected.shape:
        return f"shape {actual.shape} instead of {expected.shape}"
    name = str(expected.dtype)
    if name not in _TOLERANCES:
        count = int(np.count_nonzero(actual != expected))
        return f"{count} of {expected.size} values differ" if count else None
    a, b = actual.astype(np.float64), expected.astype(np.float64)
    known = np.isfinite(b)
    if not np.array_equal(np.isfinite(a), known):
        return "values are finite where the reference's are not, or vice versa"
    if not known.any():
        return None
    scale = float(np.abs(b[known]).max())
    worst = float(np.abs(a[known] - b[known]).max())
    if worst > _TOLERANCES[name] * scale:
        return f"off by {worst:.3g} where the largest value is {scale:.3g}"
    return None
