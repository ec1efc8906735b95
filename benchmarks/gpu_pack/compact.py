"""Encoding of a pack's tensors: as seeds if they are generated weights, otherwise as bytes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from benchmarks.gpu_pack.generator import LARGEST
from benchmarks.gpu_pack.seeded import Array, Weight

_STORED_BYTES = 512  # below it a description is no shorter
_EXPONENT_OFFSET = 200
_PROBE = 4096


class Compactor:
    """Writes tensors of one entry; `stored` are the bytes of those that are not described."""

    def __init__(self, weights: Iterable[Weight]) -> None:
        self._weights = list(weights)
        self.stored = bytearray()
        self.stored_bytes: dict[str, int] = {}

    def describe(self, name: str, dtype: str, array: Array) -> dict[str, Any]:
        """An entry of `parameters` or of `inputs`: how the C++ side makes the same bytes."""
        make = self._generated(array) if array.nbytes >= _STORED_BYTES else None
        if make is None:
            make = {"kind": "stored", "offset": len(self.stored)}
            data = np.ascontiguousarray(array).tobytes()
            self.stored += data
            if len(data) > _PROBE:
                self.stored_bytes[name] = len(data)
        return {"name": name, "dtype": dtype, "shape": list(array.shape), "make": make}

    def _generated(self, array: Array) -> dict[str, Any] | None:
        scaled = whole(array)
        if scaled is None:
            return None
        integers, exponent = scaled
        for weight in self._weights:
            if np.prod(weight.shape) != integers.size:
                continue
            order = order_of(weight, integers)
            if order is not None:
                source = [size for size in weight.shape if size > 1] or [1]
                stored = {"seed": weight.seed, "row": weight.row, "source": source, "order": list(order)}
                return {"kind": "weights", **stored, "exponent": exponent + _EXPONENT_OFFSET}
        return None


def whole(array: Array) -> tuple[Array, int] | None:
    """Integers of -127 to 127 times a power of two: int8 (elements,) and the exponent; None if it is not."""
    if array.dtype == np.bool_ or not array.size:
        return None
    wide = array.ravel().astype(np.float64)
    if not np.isfinite(wide).all() or not (largest := float(np.abs(wide).max())):
        return None
    exponent = float(np.log2(largest / LARGEST))
    if exponent != round(exponent):
        return None
    integers = wide / 2.0**exponent
    rounded = np.rint(integers)
    return (rounded.astype(np.int8), round(exponent)) if np.array_equal(integers, rounded) else None


def order_of(weight: Weight, integers: Array) -> Sequence[int] | None:
    """In which order of the weight's axes (those longer than 1) its elements are these integers; None in no order."""
    values = weight.values()
    values = values.reshape([size for size in weight.shape if size > 1] or [1])
    if values.ndim > 4:
        return None
    for order in itertools.permutations(range(values.ndim)):
        turned = values.transpose(order)
        if np.array_equal(turned.ravel()[:_PROBE], integers[:_PROBE]) and np.array_equal(turned.ravel(), integers):
            return order
    return None
