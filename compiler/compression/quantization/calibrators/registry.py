"""Calibration methods by name.

@calibrator("min-max")
def min_max(histogram: Histogram, scheme: ActivationScheme) -> tuple[float, float]: ...
"""

from __future__ import annotations

from collections.abc import Callable

from compiler.compression.quantization.affine import Affine, affine_for
from compiler.compression.quantization.histogram import Histogram
from compiler.compression.quantization.scheme import Scheme
from compiler.errors import OptionError
from schedules.discovery import import_all

# The range to represent exactly, for a tensor of that histogram; values outside are clipped.
Calibrator = Callable[[Histogram, Scheme], tuple[float, float]]

_CALIBRATORS: dict[str, Calibrator] = {}


def calibrator(name: str) -> Callable[[Calibrator], Calibrator]:
    """Register the decorated function as the method `name`."""

    def register(function: Calibrator) -> Calibrator:
        _CALIBRATORS[name] = function
        return function

    return register


def calibrators() -> list[str]:
    """The names of all methods."""
    _discover()
    return sorted(_CALIBRATORS)


def get_calibrator(name: str) -> Calibrator:
    """The method `name`. Raises OptionError with the names there are."""
    _discover()
    if name not in _CALIBRATORS:
        raise OptionError(f"no calibration method is named {name!r}", f"use one of {', '.join(calibrators())}")
    return _CALIBRATORS[name]


def parameters_of(histogram: Histogram, method: Calibrator, scheme: Scheme) -> Affine:
    """Scale and zero point for a tensor of that histogram."""
    if not histogram.total:
        return affine_for(0.0, 0.0, scheme.activations, symmetric=scheme.symmetric_activations)
    low, high = method(histogram, scheme)
    return affine_for(low, high, scheme.activations, symmetric=scheme.symmetric_activations)


def _discover() -> None:
    import_all("compiler.compression.quantization.calibrators")
