"""Aligned staging memory for inputs, which runs copy small arrays into."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from compiler.artifact.dtypes import ElementType
from compiler.runtime.tensors import empty_aligned, tensor_over

if TYPE_CHECKING:
    from schedules.ir.tvm_types import RuntimeTensor

Array = np.ndarray


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
