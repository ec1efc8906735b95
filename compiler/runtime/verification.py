"""Compares outputs with stored reference outputs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from compiler.artifact.manifest import ReferenceTolerance
from compiler.errors import VerificationError

Array = np.ndarray


def compare(
    actual: Mapping[str, Array], reference: Mapping[str, Array], tolerance: ReferenceTolerance
) -> dict[str, float]:
    """The largest absolute difference of each output; NaN equals NaN, and an infinity the same infinity.

    Raises:
        VerificationError: one differs by more than the tolerance, in shape or in element type.
    """
    differences = {}
    for name, expected in reference.items():
        got = actual.get(name)
        if got is None or got.shape != expected.shape or got.dtype != expected.dtype:
            found = "missing" if got is None else _kind(got)
            raise VerificationError(f"output {name!r} is {found}; the reference is {_kind(expected)}")
        left, right = _wide(got), _wide(expected)
        same = (left == right) | (np.isnan(left) & np.isnan(right))
        with np.errstate(invalid="ignore", over="ignore"):
            difference = np.where(same, 0.0, np.abs(left - right))
            allowed = tolerance.absolute + tolerance.relative * np.abs(right)
        differences[name] = float(difference.max(initial=0.0))
        wrong = ~(same | (difference <= allowed))
        if wrong.any():
            raise VerificationError(
                f"output {name!r} differs from the reference in {int(wrong.sum())} of {wrong.size} elements, "
                f"by up to {differences[name]:.3g} (tolerance {tolerance.relative:g} relative, {tolerance.absolute:g})",
                "this machine computes different results from the one that compiled the module",
            )
    return differences


def _kind(array: Array) -> str:
    return f"{array.dtype}{list(array.shape)}"


def _wide(array: Array) -> Array:
    return array.astype(np.float64)
