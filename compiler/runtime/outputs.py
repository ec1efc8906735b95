"""What the engine returns, as numpy arrays or DLPack tensors that belong to the caller alone."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from compiler.artifact.dtypes import ELEMENT_TYPES, ElementType
from compiler.artifact.manifest import TensorDescription
from compiler.errors import InternalError
from compiler.runtime.tensors import aligned_copy, array_over, tensor_over

Array = np.ndarray[Any, Any]


class MemoryRanges:
    """Addresses in use by long-lived tensors (the parameters); answers whether an address lies in one of them."""

    def __init__(self, arrays: Iterable[Array]) -> None:
        ranges = sorted((array.ctypes.data, array.ctypes.data + array.nbytes) for array in arrays if array.nbytes)
        self._starts = [start for start, _ in ranges]
        self._ends = [end for _, end in ranges]

    def __contains__(self, address: int) -> bool:
        index = bisect_right(self._starts, address) - 1
        return index >= 0 and address < self._ends[index]


class OutputReader:
    """Gives out a run's results under their names; one for a module, used by all of its threads."""

    def __init__(self, outputs: Sequence[TensorDescription], parameters: Iterable[Array]) -> None:
        self.names = tuple(output.name for output in outputs)
        self._elements = tuple(ELEMENT_TYPES[output.dtype] for output in outputs)
        self._parameters = MemoryRanges(parameters)

    def read(self, results: Sequence[Any], inputs: Sequence[Any], as_numpy: bool) -> dict[str, Any]:
        """The results by output name.

        A model may return an input, a parameter, or one tensor twice: the engine then gives that very memory, and the
        caller gets a copy of it.

        Raises:
            InternalError: the results are not what the manifest says.
        """
        if len(results) != len(self.names):
            raise InternalError(f"the module returned {len(results)} results; its manifest names {len(self.names)}")
        taken = [(tensor.data_ptr(), tensor) for tensor in inputs]
        named = {}
        for name, element, tensor in zip(self.names, self._elements, results, strict=True):
            address = _address(tensor, name)
            array = array_over(tensor, element) if as_numpy else None
            if address in self._parameters or any(_holds(start, owner, address) for start, owner in taken):
                array = aligned_copy(array_over(tensor, element), element)
                tensor = tensor_over(array, element)
            else:
                taken.append((address, tensor))
            named[name] = array if as_numpy else tensor
        return named


def _address(tensor: Any, name: str) -> int:
    try:
        return tensor.data_ptr()
    except AttributeError:
        raise InternalError(f"output {name!r} of the module is a {type(tensor).__name__}, not a tensor") from None


def _holds(start: int, owner: Any, address: int) -> bool:
    if address < start:
        return False
    if address == start:
        return True
    element: ElementType = ELEMENT_TYPES[str(owner.dtype)]
    return address < start + owner.numel() * element.numpy.itemsize
