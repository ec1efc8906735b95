"""Deduplication of constants and arrays by content."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable

import numpy as np
from tvm import relax

from compiler.passes.rewriting.matching import Array, array_of
from schedules.ir.tvm_types import Expr


class ConstantPool:
    """Constants by content, indexed in order of first use."""

    def __init__(self) -> None:
        self.arrays: list[Array] = []
        self.constants: list[Expr] = []
        self._by_object: dict[Expr, int] = {}
        self._distinct = ArrayIndex()

    def name(self, index: int) -> str:
        """Return the parameter's name."""
        return f"parameter_{index}"

    def index(self, constant: Expr) -> int | None:
        """Return the index of `constant`, or None for a scalar, which stays in the code."""
        if not isinstance(constant.ty, relax.TensorType) or constant.ty.ndim == 0:
            return None
        if constant not in self._by_object:
            self._by_object[constant] = self._find_or_add(constant)
        return self._by_object[constant]

    def _find_or_add(self, constant: Expr) -> int:
        array = array_of(constant)
        index = self._distinct.index(array)
        if index == len(self.arrays):
            self.arrays.append(array)
            self.constants.append(constant)
        return index


class ArrayIndex:
    """Numbers distinct arrays from 0; arrays with equal bits, data type and shape have the same number."""

    def __init__(self) -> None:
        self._arrays: list[Array] = []
        self._by_digest: dict[Hashable, list[int]] = defaultdict(list)

    def index(self, array: Array) -> int:
        """Return the number of `array`: that of an equal one seen before, or the next."""
        same_digest = self._by_digest[_digest(array)]
        for index in same_digest:
            if same_bits(self._arrays[index], array):
                return index
        self._arrays.append(array)
        same_digest.append(len(self._arrays) - 1)
        return len(self._arrays) - 1


def _digest(array: Array) -> tuple[object, ...]:
    """Return a key equal for equal arrays and cheap for large ones: 64 elements, evenly spaced."""
    flat = array.reshape(-1)
    sample = flat[:: max(1, flat.size // 64)][:64]
    return (str(array.dtype), array.shape, np.ascontiguousarray(sample).tobytes())


def same_bits(left: Array, right: Array) -> bool:
    """True if two arrays hold the same bits, NaN and the sign of zero included."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    left_bytes, right_bytes = (np.ascontiguousarray(each).reshape(-1).view(np.uint8) for each in (left, right))
    return bool(np.array_equal(left_bytes, right_bytes))
