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
        self._elements = tuple(ELEMENT_TYPES[output.carrier or output.dtype] for output in outputs)
        self._carried = {output.name: ELEMENT_TYPES[output.dtype] for output in outputs if output.carrier is not None}
        self._named = tuple(zip(range(len(outputs)), self.names, self._elements, strict=True))
        self._parameters = MemoryRanges(parameters)
        # Half the time of indexing TVM's array from Python.
        self._size = global_function("ffi.ArraySize")
        self._item = global_function("ffi.ArrayGetItem")

    def read(
        self, results: Any, inputs: Sequence[Any], as_numpy: bool, without: frozenset[str] = frozenset()
    ) -> dict[str, Any]:
        """The results by output name.

        A model may return an input, a parameter, or one tensor twice: TVM then gives that very memory, and the
        caller gets a copy of it.

        Args:
            results: TVM's array of tensors.
            inputs: the tensors that went in.
            without: names of outputs to leave out.

        Raises:
            InternalError: the results are not what the manifest says.
        """
        self._check(results)
        named = {}
        given: list[int] = []
        for index, name, element in self._named:
            if name in without:
                continue
            tensor = self._item(results, index)
            if not isinstance(tensor, tvm_ffi.Tensor):
                raise InternalError(f"output {name!r} of the module is a {type(tensor).__name__}, not a tensor")
            array = array_over(tensor, element) if as_numpy and element.carrier is element.numpy else None
            # Comparing numpy's types takes a tenth of the time that comparing with TVM's does.
            if array is None or array.dtype != element.numpy:
                _check_dtype(name, tensor, element)
            if array is None and as_numpy:
                array = array_over(tensor, element)
            address = tensor.data_ptr()
            if address in given or address in self._parameters or _is_inside(address, inputs):
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


def _check_dtype(name: str, tensor: Any, element: ElementType) -> None:
    if tensor.dtype != element.name:
        raise InternalError(f"output {name!r} has element type {tensor.dtype}, not {element.name} as announced")


def _decarried(value: Any, element: ElementType) -> Any:
    """An output in its own element type."""
    if isinstance(value, np.ndarray):
        return from_carried(value, element)
    own = from_carried(np.from_dlpack(value), element)
    return tensor_over(aligned_copy(own, element), element)


def _is_inside(address: int, tensors: Sequence[Any]) -> bool:
    for tensor in tensors:
        start = tensor.data_ptr()
        if address == start:
            return True
        if address > start and address < start + tensor.numel() * ELEMENT_TYPES[str(tensor.dtype)].numpy.itemsize:
            return True
    return False
