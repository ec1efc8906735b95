"""The element types that modules support, by their TVM names, with their representation in numpy and safetensors.

Types smaller than a byte (int4, uint2, ...) take one byte per element with the value in the low bits. TVM's generated
code reads this form, and `ml_dtypes` arrays have it too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np


@dataclass(frozen=True)
class ElementType:
    """One element type: `numpy` is its dtype, `storage` its safetensors name, `carrier` the dtype that DLPack
    supports."""

    name: str
    numpy: np.dtype[Any]
    storage: str
    carrier: np.dtype[Any]


def _native(name: str, storage: str) -> ElementType:
    dtype = np.dtype(name)
    return ElementType(name, dtype, storage, dtype)


def _extended(name: str, storage: str) -> ElementType:
    dtype = np.dtype(getattr(ml_dtypes, name))
    return ElementType(name, dtype, storage, np.dtype(f"uint{8 * dtype.itemsize}"))


ELEMENT_TYPES: dict[str, ElementType] = {
    element.name: element
    for element in (
        _native("bool", "BOOL"),
        *(_native(f"int{bits}", f"I{bits}") for bits in (8, 16, 32, 64)),
        *(_native(f"uint{bits}", f"U{bits}") for bits in (8, 16, 32, 64)),
        *(_native(f"float{bits}", f"F{bits}") for bits in (16, 32, 64)),
        _extended("bfloat16", "BF16"),
        _extended("float8_e4m3fn", "F8_E4M3"),
        _extended("float8_e5m2", "F8_E5M2"),
        # safetensors has no name for these types; the manifest has.
        _extended("float8_e4m3fnuz", "U8"),
        _extended("float8_e5m2fnuz", "U8"),
        _extended("int4", "I8"),
        _extended("uint4", "U8"),
        _extended("int2", "I8"),
        _extended("uint2", "U8"),
        _extended("float4_e2m1fn", "U8"),
        _extended("float8_e8m0fnu", "U8"),
    )
}


def as_carried(array: np.ndarray, carrier: ElementType) -> np.ndarray:
    """An array in the form that `main` takes if the manifest names a carrier: integers by value, floats by their
    bits."""
    return array.view(carrier.numpy) if _is_float(str(array.dtype)) else array.astype(carrier.numpy)


def from_carried(array: np.ndarray, element: ElementType) -> np.ndarray:
    """The inverse: an array that `main` returned, as an array of type `element`."""
    return array.view(element.numpy) if _is_float(element.name) else array.astype(element.numpy)


def _is_float(name: str) -> bool:
    return "float" in name
