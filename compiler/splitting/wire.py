"""Encoding of floats on the wire: unchanged, in half precision, or as 8-bit integers with a calibrated scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax

from compiler.errors import OptionError

Array = np.ndarray
KINDS = ("float32", "float16", "int8")
_HALF = 65504.0


@dataclass(frozen=True)
class Wire:
    """The type of a tensor on the wire.

    Attributes:
        kind: one of `KINDS`; what is no float32 crosses as it is.
        scale, zero_point: of int8: value = (integer - zero_point) * scale.
    """

    kind: str = "float32"
    scale: float = 1.0
    zero_point: int = 0

    def through(self, array: Array) -> Array:
        """Array as it arrives when it is sent: the same arithmetic as both halves use."""
        if array.dtype != np.float32 or self.kind == "float32":
            return array
        if self.kind == "float16":
            return np.clip(array, -_HALF, _HALF).astype(np.float16).astype(np.float32)
        integers = np.clip(np.rint(array * np.float32(1 / self.scale)) + self.zero_point, -128, 127)
        return ((integers - self.zero_point) * np.float32(self.scale)).astype(np.float32)


def wire_dtype(dtype: str, kind: str) -> str:
    """The element type on the wire of a tensor of `dtype`."""
    return kind if dtype == "float32" else dtype


def calibrated(kind: str, arrays: list[Array]) -> Wire:
    """A wire type for values like these. Raises OptionError for a type that is none of `KINDS`."""
    if kind not in KINDS:
        raise OptionError(f"unknown wire type {kind!r}", f"known: {', '.join(KINDS)}")
    if kind != "int8" or arrays[0].dtype != np.float32:
        return Wire(kind)
    finite = [array[np.isfinite(array)] for array in arrays]
    low = min(min((float(array.min()) for array in finite if array.size), default=0.0), 0.0)
    high = max(max((float(array.max()) for array in finite if array.size), default=0.0), 0.0)
    scale = float(np.float32((high - low) / 255)) or 1.0
    return Wire(kind, scale, int(np.clip(np.rint(-128 - low / scale), -128, 127)))


def encoded(value: Any, dtype: str, wire: Wire, builder: Any) -> Any:
    """Relax calls that turn a value into what is sent."""
    if dtype != "float32" or wire.kind == "float32":
        return value
    if wire.kind == "float16":
        clipped = builder.emit(relax.op.clip(value, -_HALF, _HALF), "clipped")
        return builder.emit(relax.op.astype(clipped, "float16"), "half")
    scaled = builder.emit(relax.op.multiply(value, _number(1 / wire.scale)), "scaled")
    rounded = builder.emit(relax.op.round(scaled), "rounded")
    moved = builder.emit(relax.op.add(rounded, _number(wire.zero_point)), "moved")
    clipped = builder.emit(relax.op.clip(moved, -128, 127), "clipped")
    return builder.emit(relax.op.astype(clipped, "int8"), "integers")


def decoded(value: Any, dtype: str, wire: Wire, builder: Any) -> Any:
    """Relax calls that turn what arrives into the value."""
    if dtype != "float32" or wire.kind == "float32":
        return value
    widened = builder.emit(relax.op.astype(value, "float32"), "widened")
    if wire.kind == "float16":
        return widened
    moved = builder.emit(relax.op.subtract(widened, _number(wire.zero_point)), "moved")
    return builder.emit(relax.op.multiply(moved, _number(wire.scale)), "values")


def _number(value: float) -> Any:
    return relax.const(np.float32(value), "float32")
