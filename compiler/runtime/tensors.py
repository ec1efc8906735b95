"""Converts between numpy, DLPack and TVM tensors, without a copy where generated code can use the memory in place.

Generated code assumes contiguous tensors aligned to 64 bytes (its vectors are that long, and it uses aligned loads).
Nothing checks this at run time, so all inputs are checked or copied here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from compiler.artifact.dtypes import ElementType
from compiler.errors import InputError
from compiler.runtime.tvm_runtime import global_function, tvm_ffi

if TYPE_CHECKING:
    from schedules.ir.tvm_types import RuntimeTensor

ALIGNMENT = 64
_MOST_BYTES = 1 << 62  # numpy counts in 64 bits
Array = np.ndarray


def empty_aligned(shape: tuple[int, ...], element: ElementType) -> Array:
    """An uninitialized C-ordered array whose data starts at a multiple of 64 bytes."""
    return _aligned(np.empty(_bytes(shape, element) + ALIGNMENT, np.uint8), shape, element)


def zeros_aligned(shape: tuple[int, ...], element: ElementType) -> Array:
    """Like `empty_aligned`, of zeros; a large one takes memory only where it is written to. Raises MemoryError."""
    if _bytes(shape, element) > _MOST_BYTES:
        raise MemoryError
    return _aligned(np.zeros(_bytes(shape, element) + ALIGNMENT, np.uint8), shape, element)


def _bytes(shape: tuple[int, ...], element: ElementType) -> int:
    return math.prod(shape) * element.numpy.itemsize


def _aligned(raw: Array, shape: tuple[int, ...], element: ElementType) -> Array:
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + _bytes(shape, element)].view(element.numpy).reshape(shape)


def aligned_copy(array: Array, element: ElementType) -> Array:
    """A compact copy at an aligned address."""
    copy = empty_aligned(array.shape, element)
    copy[...] = array
    return copy


def is_usable(array: Array) -> bool:
    """True if generated code may read the array where it is."""
    return array.flags.c_contiguous and array.ctypes.data % ALIGNMENT == 0


def tensor_over(array: Array, element: ElementType) -> RuntimeTensor:
    """TVM's tensor over an aligned, compact array's memory, which it keeps alive.

    A read-only array is taken too: the caller sees to it that nobody writes.
    """
    if array.size == 0:
        # numpy's strides of an empty array are not those that generated code checks for.
        return view_as(tvm_ffi.from_dlpack(np.empty(1, element.carrier)), array.shape, element.name)
    carrier = array.view(element.carrier) if element.carrier is not element.numpy else array
    if not carrier.flags.writeable:
        carrier = _writeable_alias(carrier)
    tensor = tvm_ffi.from_dlpack(carrier)
    return tensor if element.carrier is element.numpy else view_as(tensor, array.shape, element.name)


class _Memory:
    """Memory of a read-only array offered as if it were writeable: DLPack's first version cannot say read-only."""

    def __init__(self, array: Array) -> None:
        self._owner = array
        self.__array_interface__ = {**array.__array_interface__, "data": (array.ctypes.data, False)}


def _writeable_alias(array: Array) -> Array:
    return np.asarray(_Memory(array))


# NumPy before 2.2.5 marks every array that DLPack gave read-only.
MARKED_READ_ONLY = not np.from_dlpack(np.empty(1)).flags.writeable


def _writeable(array: Array) -> Array:
    """An array that DLPack gave, writeable."""
    return _writeable_alias(array) if MARKED_READ_ONLY else array


def view_as(tensor: RuntimeTensor, shape: tuple[int, ...], dtype: str) -> RuntimeTensor:
    """The same memory under another element type (TVM's name of it)."""
    return global_function("runtime.TVMTensorCreateView")(tensor, tvm_ffi.Shape(shape), tvm_ffi.dtype(dtype), 0)


def array_over(tensor: RuntimeTensor, element: ElementType) -> Array:
    """A numpy array over a compact tensor's memory, which it keeps alive."""
    if element.carrier is element.numpy:
        try:
            array = np.from_dlpack(tensor)
            return _writeable_alias(array) if MARKED_READ_ONLY else array
        except ValueError as error:
            if any(size < 0 for size in tensor.shape):
                shape = tuple(int(size) for size in tensor.shape)
                raise InputError(
                    f"the inputs are too small for this model: an output would have shape {shape}"
                ) from error
            raise
    return _writeable(np.from_dlpack(view_as(tensor, tensor.shape, element.carrier.name))).view(element.numpy)


class _Strided:
    """A numpy view of a strided tensor's memory."""

    def __init__(self, tensor: RuntimeTensor, element: ElementType) -> None:
        self._owner = tensor
        size = element.carrier.itemsize
        self.__array_interface__ = {
            "version": 3,
            "shape": tensor.shape,
            "strides": tuple(stride * size for stride in tensor.strides),
            "typestr": element.carrier.str,
            "data": (tensor.data_ptr(), True),
        }


def array_over_strided(tensor: RuntimeTensor, element: ElementType) -> Array:
    """A read-only numpy array over any tensor in the processor's memory, whatever its strides."""
    return np.asarray(_Strided(tensor, element)).view(element.numpy)
