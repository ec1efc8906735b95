"""Affine quantization in numpy: value = scale * (integer - zero), like the operators of the graph."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Array = np.ndarray
# With smaller steps, a sum's scale, the product of two of them, would be a subnormal number.
_SMALLEST_SCALE = 2.0**-60
NO_NOISE = 200.0  # decibels of exact values


@dataclass(frozen=True)
class Affine:
    """Scale and zero point of one tensor.

    Attributes:
        dtype: "uint8" or "int8" ("int16" too).
        scale: float32 as a Python number, above 0.
        zero: the integer that represents 0.
    """

    dtype: str
    scale: float
    zero: int

    @property
    def limits(self) -> tuple[float, float]:
        """The smallest and the largest value that can be represented."""
        info = np.iinfo(self.dtype)
        return self.scale * (int(info.min) - self.zero), self.scale * (int(info.max) - self.zero)

    def round_trip(self, values: Array) -> Array:
        """float32 values after quantization and dequantization."""
        info = np.iinfo(self.dtype)
        scale = np.float32(self.scale)
        integers = np.clip(np.rint(values / scale) + self.zero, info.min, info.max)
        return ((integers - self.zero) * scale).astype(np.float32)


def affine_for(low: float, high: float, dtype: str, *, symmetric: bool = False) -> Affine:
    """The tightest parameters that cover [low, high] and 0: 0 is exact, as padding and ReLU require. `symmetric`: the
    zero point is 0 (int8, int16) or the middle of the range (uint8)."""
    low, high = min(low, 0.0), max(high, 0.0)
    info = np.iinfo(dtype)
    least, most = int(info.min), int(info.max)
    if symmetric:
        zero = (least + most + 1) // 2
        scale = max(-low, high) / (most - zero)
    else:
        scale = (high - low) / (most - least)
        zero = 0
    scale = float(np.float32(max(scale, _SMALLEST_SCALE))) if high > low else 1.0
    if not symmetric:
        zero = int(np.clip(np.rint(least - low / scale), least, most))
    return Affine(dtype, scale, zero)


@dataclass(frozen=True)
class QuantizedWeight:
    """Weights as integers whose zero point is 0.

    Attributes:
        values: int8.
        scale: float32, a scalar, or a vector along `axis`.
        axis: axis of the filters.
    """

    values: Array
    scale: Array
    axis: int

    def dequantized(self) -> Array:
        """The weights as float32."""
        return (self.values.astype(np.float32) * self.broadcast_scale()).astype(np.float32)

    def broadcast_scale(self) -> Array:
        """The scale, shaped to broadcast over the values."""
        shape = [1] * self.values.ndim
        if self.scale.ndim:
            shape[self.axis] = -1
        return self.scale.reshape(shape)


def quantize_weight(weight: Array, axis: int, *, per_channel: bool, bits: int = 8) -> QuantizedWeight:
    """Weights rounded to the nearest of 2**bits - 1 levels, with the largest magnitude at the last level."""
    most = 2 ** (bits - 1) - 1
    others = tuple(each for each in range(weight.ndim) if each != axis)
    magnitude = np.abs(weight).max(axis=others) if per_channel else np.abs(weight).max()
    scale = np.asarray(np.where(magnitude > 0, np.maximum(magnitude / most, _SMALLEST_SCALE), 1.0), np.float32)
    unrounded = QuantizedWeight(weight, scale, axis)
    values = np.clip(np.rint(weight / unrounded.broadcast_scale()), -most, most).astype(np.int8)
    return QuantizedWeight(values, scale, axis)


def noise_ratio(noisy: Array, exact: Array) -> tuple[float, float]:
    """(energy of the difference, energy of `exact`), summed in float64.

    Positions that are infinite or NaN in the same way in both are ignored; in only one, they are infinite noise.
    """
    actual, expected = noisy.astype(np.float64), exact.astype(np.float64)
    usual = np.isfinite(actual) & np.isfinite(expected)
    if not usual.all():
        alike = (actual == expected) | (np.isnan(actual) & np.isnan(expected))
        if not (usual | alike).all():
            return float("inf"), float((expected[usual] ** 2).sum())
        actual, expected = actual[usual], expected[usual]
    return float(((actual - expected) ** 2).sum()), float((expected**2).sum())


def decibels(noise: float, signal: float) -> float:
    """Signal-to-noise ratio as 10 log10 of the ratio of energies, limited to +-`NO_NOISE`."""
    if noise <= signal * 1e-20:
        return NO_NOISE
    if not noise < float("inf"):
        return -NO_NOISE
    return max(-NO_NOISE, float(10 * np.log10(max(signal, 1e-300) / noise)))
