"""Element types: ONNX's numbers and names, and the types of numpy and TVM.

A *name* is numpy's or ml_dtypes' (`float32`, `bfloat16`, `int4`, `bool`, `string`). Types narrower than a byte are
carried by a byte-wide type that holds their values (`carrier`), since TVM packs them in ways its kernels do not
support; floats of a byte or less by their bits in a byte, since TVM casts them incorrectly.
"""

from __future__ import annotations

from typing import Literal

import ml_dtypes
import numpy as np
from onnx import TensorProto

NAMES: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.UINT8: "uint8",
    TensorProto.INT8: "int8",
    TensorProto.UINT16: "uint16",
    TensorProto.INT16: "int16",
    TensorProto.INT32: "int32",
    TensorProto.INT64: "int64",
    TensorProto.STRING: "string",
    TensorProto.BOOL: "bool",
    TensorProto.FLOAT16: "float16",
    TensorProto.DOUBLE: "float64",
    TensorProto.UINT32: "uint32",
    TensorProto.UINT64: "uint64",
    TensorProto.COMPLEX64: "complex64",
    TensorProto.COMPLEX128: "complex128",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.FLOAT8E4M3FN: "float8_e4m3fn",
    TensorProto.FLOAT8E4M3FNUZ: "float8_e4m3fnuz",
    TensorProto.FLOAT8E5M2: "float8_e5m2",
    TensorProto.FLOAT8E5M2FNUZ: "float8_e5m2fnuz",
    TensorProto.UINT4: "uint4",
    TensorProto.INT4: "int4",
    TensorProto.FLOAT4E2M1: "float4_e2m1fn",
    24: "float8_e8m0fnu",  # TensorProto.FLOAT8E8M0, named only by newer onnx
    25: "uint2",
    26: "int2",
}
NUMBERS = {name: number for number, name in NAMES.items()}

Carrier = Literal["int8", "uint8"]
_CARRIERS: dict[str, Carrier] = {"int4": "int8", "int2": "int8", "uint4": "uint8", "uint2": "uint8"}
_CARRIERS.update({name: "uint8" for name in NUMBERS if name.startswith(("float8", "float4"))})
_UNCARRIED = frozenset({"string", "complex64", "complex128"})


def dtype_name(element_type: int) -> str | None:
    """Return the name of ONNX's element type number, or None if there is no such type."""
    return NAMES.get(element_type)


def numpy_dtype(name: str) -> np.dtype:
    """Return the numpy (or ml_dtypes) type of that name; strings are objects."""
    if name == "string":
        return np.dtype(object)
    return np.dtype(getattr(ml_dtypes, name)) if hasattr(ml_dtypes, name) else np.dtype(name)


def carrier(name: str) -> str:
    """Return TVM's type that carries values of type `name`."""
    return _CARRIERS.get(name, name)


def carrier_of(name: str) -> Carrier | None:
    """Return TVM's type that carries values of type `name` if it is a different one."""
    return _CARRIERS.get(name)


def to_carrier(array: np.ndarray, name: str) -> np.ndarray:
    """Convert an array of type `name` to TVM's representation."""
    target = np.dtype(numpy_dtype(carrier(name)))
    return array.view(target) if is_float8_or_float4(name) else array.astype(target, copy=False)


def from_carrier(array: np.ndarray, name: str) -> np.ndarray:
    """Convert an array in TVM's representation to type `name`."""
    return array.view(numpy_dtype(name)) if is_float8_or_float4(name) else array.astype(numpy_dtype(name), copy=False)


def is_float8_or_float4(name: str) -> bool:
    """True for a float of a byte or less."""
    return name.startswith(("float8", "float4"))


def is_carried(name: str) -> bool:
    """True if tensors of that type can exist at run time."""
    return name not in _UNCARRIED


def is_float(name: str) -> bool:
    return name.startswith(("float", "bfloat"))


def is_integer(name: str) -> bool:
    return name.startswith(("int", "uint"))


def is_unsigned(name: str) -> bool:
    return name.startswith("uint")


def bits(name: str) -> int:
    """Return the number of bits of a value of that numeric type."""
    if name == "bool":
        return 1
    if name.startswith("float8"):
        return 8
    if name.startswith("float4"):
        return 4
    return int("".join(filter(str.isdigit, name)))


def integer_limits(name: str) -> tuple[int, int]:
    """Return the smallest and largest value of an integer type."""
    width = bits(name)
    return (0, 2**width - 1) if is_unsigned(name) else (-(2 ** (width - 1)), 2 ** (width - 1) - 1)
