"""Converts between numpy, DLPack and TVM tensors, without a copy where generated code can use the memory in place.

Generated code assumes contiguous tensors aligned to 64 bytes (its vectors are that long, and it uses aligned loads).
Nothing checks this at run time, so all inputs are checked or copied here.

Aligned staging memory for inputs, which runs copy small arrays into.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

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


class MemoryRanges:
    """Addresses in use by long-lived tensors (parameters, states); answers whether an address lies in one of them.

    Those that do are from `low` up to, not including, `high`.
    """

    def __init__(self, ranges: Iterable[tuple[int, int]]) -> None:
        """`ranges`: (first address, the one after the last) of each tensor."""
        known = sorted((start, end) for start, end in ranges if start < end)
        self._starts = [start for start, _ in known]
        self._ends = [end for _, end in known]
        self.low, self.high = (self._starts[0], self._ends[-1]) if known else (0, 0)

    def __contains__(self, address: int) -> bool:
        index = bisect_right(self._starts, address) - 1
        return index >= 0 and address < self._ends[index]


NO_MEMORY = MemoryRanges(())


class Staging:
    """Aligned memory of one input that a run copies into; reused as long as the shape stays the same."""

    __slots__ = ("array", "shape", "tensor")

    def __init__(self) -> None:
        self.shape: tuple[int, ...] | None = None
        self.array: Array = np.empty(0)
        self.tensor: Any = None

    def filled(self, value: Array, element: ElementType) -> RuntimeTensor:
        """TVM's tensor of this memory, after copying a value into it."""
        if self.shape != value.shape:
            self.shape = value.shape
            self.array = empty_aligned(value.shape, element)
            self.tensor = tensor_over(self.array, element)
        self.array[...] = value
        return self.tensor


class InputMemory:
    """The inputs of one session: staging of each, and the tensors of the last run, which most runs use again.

    Attributes:
        stages: one for each input.
        tensors: TVM's tensors of the last run, in the order of `main`.
        sizes: sizes of the symbolic dimensions in the last run, by name.
        ranges: address ranges (begin, end) of the tensors except `states`.
        states: address ranges of a session's states that were bound before.
    """

    __slots__ = ("_names", "_slots", "ranges", "sizes", "stages", "states", "tensors")

    def __init__(self, inputs: int) -> None:
        self.stages = [Staging() for _ in range(inputs)]
        self.tensors: list[Any] = []
        self.sizes: dict[str, int] = {}
        self.ranges: list[tuple[int, int]] = []
        self.states = NO_MEMORY
        self._names: tuple[str, ...] = ()
        self._slots: list[tuple[str, tuple[int, ...], np.dtype[Any], Array]] | None = None

    def keep(
        self,
        tensors: list[RuntimeTensor],
        sizes: dict[str, int],
        ranges: list[tuple[int, int]],
        states: MemoryRanges = NO_MEMORY,
    ) -> None:
        """Remember what was bound, and where it lies; `copied_again` gives False until `copies` is called."""
        self._slots = None
        self.tensors, self.sizes, self.ranges, self.states = tensors, sizes, ranges, states

    def copies(self, names: tuple[str, ...]) -> None:
        """Every tensor of the last run was copied into its staging from an array of that shape and element type."""
        self._names = names
        self._slots = [
            (name, stage.array.shape, stage.array.dtype, stage.array)
            for name, stage in zip(names, self.stages, strict=True)
        ]

    def release(self) -> None:
        """After a run: let go of memory that is the caller's."""
        if self._slots is None:
            self.tensors, self.ranges, self.states = [], [], NO_MEMORY

    def copied_again(self, inputs: Any) -> bool:
        """True if the inputs were arrays of the last run's names, shapes and element types, and were copied.

        The tensors are then those of the last run. When False, some may have been overwritten.
        """
        slots = self._slots
        if slots is None:
            return False
        kind = type(inputs)
        if kind is list or kind is tuple:
            inputs = dict(zip(self._names, inputs, strict=False)) if len(inputs) == len(slots) else {}
        elif kind is not dict:
            return False
        if len(inputs) != len(slots):
            return False
        # Written with few calls and iterators: this is a tenth of a small model's run time.
        for name, shape, dtype, array in slots:
            value = inputs.get(name)
            if type(value) is not np.ndarray or value.shape != shape or value.dtype != dtype:
                return False
            array[...] = value
        return True


def range_of_array(array: Array) -> tuple[int, int]:
    """Address range of an array: its first address, and the one after the last."""
    return array.ctypes.data, array.ctypes.data + array.nbytes


def range_of(tensor: RuntimeTensor, itemsize: int) -> tuple[int, int]:
    """Address range of a tensor: its first address, and the one after the last."""
    start = tensor.data_ptr()
    return start, start + tensor.numel() * itemsize
