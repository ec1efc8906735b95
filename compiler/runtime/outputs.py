"""What TVM returns, as numpy arrays or DLPack tensors that belong to the caller alone."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from compiler.artifact.dtypes import ELEMENT_TYPES, ElementType, from_carried
from compiler.artifact.manifest import TensorDescription
from compiler.errors import InternalError
from compiler.runtime.tensors import aligned_copy, array_over, tensor_over
from compiler.runtime.tvm_runtime import global_function, tvm_ffi

Array = np.ndarray[Any, Any]
_TENSOR = tvm_ffi.Tensor


class MemoryRanges:
    """Addresses in use by long-lived tensors (the parameters); answers whether an address lies in one of them.

    Those that do are from `low` up to, not including, `high`.
    """

    def __init__(self, arrays: Iterable[Array]) -> None:
        ranges = sorted((array.ctypes.data, array.ctypes.data + array.nbytes) for array in arrays if array.nbytes)
        self._starts = [start for start, _ in ranges]
        self._ends = [end for _, end in ranges]
        self.low, self.high = (self._starts[0], self._ends[-1]) if ranges else (0, 0)

    def __contains__(self, address: int) -> bool:
        index = bisect_right(self._starts, address) - 1
        return index >= 0 and address < self._ends[index]


class OutputReader:
    """Gives out a run's results under their names; one for a module, used by all of its threads."""

    def __init__(
        self,
        outputs: Sequence[TensorDescription],
        parameters: Iterable[Array],
    ) -> None:
        self.names = tuple(output.name for output in outputs)
        self._elements = tuple(ELEMENT_TYPES[output.carrier or output.dtype] for output in outputs)
        self._carried = {output.name: ELEMENT_TYPES[output.dtype] for output in outputs if output.carrier is not None}
        plain = (element.carrier is element.numpy for element in self._elements)
        self._named = tuple(zip(range(len(outputs)), self.names, self._elements, plain, strict=True))
        self._parameters = MemoryRanges(parameters)
        self._counted = False
        # Half the time of indexing TVM's array from Python.
        self._size = global_function("ffi.ArraySize")
        self._item = global_function("ffi.ArrayGetItem")

    def read(
        self,
        results: Any,
        inputs: Sequence[tuple[int, int]],
        as_numpy: bool,
        without: frozenset[str] = frozenset(),
    ) -> dict[str, Any]:
        """The results by output name.

        A model may return an input, a parameter, or one tensor twice: TVM then gives that very memory, and the
        caller gets a copy of it.

        Args:
            results: TVM's array of tensors.
            inputs: where the tensors lie that went in, (first address, the one after the last) each.
            without: names of outputs to leave out.

        Raises:
            InternalError: the results are not what the manifest says.
        """
        if not self._counted:
            self._check(results)
        # Few calls and no helpers: reading is a third of a small model's time.
        named = {}
        given: list[int] = []
        low, high = self._parameters.low, self._parameters.high
        for index, name, element, plain in self._named:
            if name in without:
                continue
            tensor = self._item(results, index)
            if not isinstance(tensor, _TENSOR):
                raise InternalError(f"output {name!r} of the module is a {type(tensor).__name__}, not a tensor")
            array = array_over(tensor, element) if plain and as_numpy else None
            # Comparing numpy's types takes a tenth of the time that comparing with TVM's does.
            if array is None or array.dtype != element.numpy:
                _check_dtype(name, tensor, element)
            if array is None and as_numpy:
                array = array_over(tensor, element)
            address = tensor.data_ptr()
            taken = address in given or (low <= address < high and address in self._parameters)
            for start, end in inputs:
                if start <= address < end or address == start:
                    taken = True
            if taken:
                array = aligned_copy(array_over(tensor, element), element)
                tensor = tensor_over(array, element)
            given.append(address)
            named[name] = array if as_numpy else tensor
        for name, element in self._carried.items():
            if name in without:
                continue
            named[name] = _decarried(named[name], element)
        return named

    def _check(self, results: Any) -> None:
        try:
            count = self._size(results)
        except TypeError as error:
            raise InternalError(f"the module returned a {type(results).__name__}, not a tuple") from error
        if count != len(self.names):
            raise InternalError(f"the module returned {count} results; its manifest names {len(self.names)}")
        self._counted = True  # the code of a function gives as many each time


def _check_dtype(name: str, tensor: Any, element: ElementType) -> None:
    if tensor.dtype != element.name:
        raise InternalError(f"output {name!r} has element type {tensor.dtype}, not {element.name} as announced")


def _decarried(value: Any, element: ElementType) -> Any:
    """An output in its own element type."""
    if isinstance(value, np.ndarray):
        return from_carried(value, element)
    own = from_carried(np.from_dlpack(value), element)
    return tensor_over(aligned_copy(own, element), element)
