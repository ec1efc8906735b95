"""Converts between numpy, DLPack and TVM tensors, without a copy if generated code can use the memory in place.

Generated code assumes contiguous tensors aligned to 64 bytes (the length of its vectors; it uses aligned loads).
Nothing checks this at run time, so all inputs are checked or copied here, small arrays into aligned staging memory.
Results belong to the caller.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from compiler.artifact.dtypes import ELEMENT_TYPES, ElementType, from_carried
from compiler.artifact.manifest import ReferenceTolerance, TensorDescription
from compiler.errors import InputError, InternalError, VerificationError, type_text
from compiler.runtime.tvm_runtime import global_function, tvm_ffi

if TYPE_CHECKING:
    from schedules.ir.tvm_types import RuntimeTensor

ALIGNMENT = 64
_MAX_BYTES = 1 << 62  # numpy sizes are signed 64-bit
Array = np.ndarray


def empty_aligned(shape: tuple[int, ...], element: ElementType) -> Array:
    """An uninitialized C-ordered array whose data starts at a multiple of 64 bytes."""
    return _aligned(np.empty(_bytes(shape, element) + ALIGNMENT, np.uint8), shape, element)


def zeros_aligned(shape: tuple[int, ...], element: ElementType) -> Array:
    """Like `empty_aligned`, with zeros; memory of large arrays is only allocated where written. Raises MemoryError."""
    if _bytes(shape, element) > _MAX_BYTES:
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
    """True if generated code may read the array in place."""
    return array.flags.c_contiguous and array.ctypes.data % ALIGNMENT == 0


def tensor_over(array: Array, element: ElementType) -> RuntimeTensor:
    """TVM's tensor over an aligned, compact array's memory, which it keeps alive.

    Read-only arrays are accepted, too: the caller ensures that nothing writes to them.
    """
    if array.size == 0:
        # numpy's strides of an empty array differ from those that generated code checks.
        return view_as(tvm_ffi.from_dlpack(np.empty(1, element.carrier)), array.shape, element.name)
    carrier = array.view(element.carrier) if element.carrier is not element.numpy else array
    if not carrier.flags.writeable:
        carrier = _writeable_alias(carrier)
    tensor = tvm_ffi.from_dlpack(carrier)
    return tensor if element.carrier is element.numpy else view_as(tensor, array.shape, element.name)


class _Memory:
    """Memory of a read-only array presented as writable: DLPack's first version cannot express read-only."""

    def __init__(self, array: Array) -> None:
        self._owner = array
        self.__array_interface__ = {**array.__array_interface__, "data": (array.ctypes.data, False)}


def _writeable_alias(array: Array) -> Array:
    return np.asarray(_Memory(array))


# NumPy before 2.2.5 marks every array from DLPack as read-only.
MARKED_READ_ONLY = not np.from_dlpack(np.empty(1)).flags.writeable


def _writeable(array: Array) -> Array:
    """An array from DLPack, marked as writable."""
    return _writeable_alias(array) if MARKED_READ_ONLY else array


def view_as(tensor: RuntimeTensor, shape: tuple[int, ...], dtype: str) -> RuntimeTensor:
    """The same memory with another element type (TVM's name)."""
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
    """A read-only numpy array over any tensor in CPU memory, with any strides."""
    return np.asarray(_Strided(tensor, element)).view(element.numpy)


class MemoryRanges:
    """Addresses in use by long-lived tensors (parameters, states), to test whether an address is in one of them.

    All of them are at or above `low` and below `high`.
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
    """The inputs of one session: staging of each, and the tensors of the last run, which most runs reuse.

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
        """Remember the bound tensors and their addresses; `copied_again` returns False until `copies` is called."""
        self._slots = None
        self.tensors, self.sizes, self.ranges, self.states = tensors, sizes, ranges, states

    def copies(self, names: tuple[str, ...]) -> None:
        """Record that every tensor of the last run was copied to its staging from an array of that shape and type."""
        self._names = names
        self._slots = [
            (name, stage.array.shape, stage.array.dtype, stage.array)
            for name, stage in zip(names, self.stages, strict=True)
        ]

    def release(self) -> None:
        """Release the caller's memory after a run."""
        if self._slots is None:
            self.tensors, self.ranges, self.states = [], [], NO_MEMORY

    def copied_again(self, inputs: Any) -> bool:
        """True if the inputs are arrays with the last run's names, shapes and element types, and were copied.

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
        # Few calls and iterators: this is a tenth of a small model's run time.
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


_TENSOR = tvm_ffi.Tensor
_from_dlpack = np.from_dlpack


def check_out(out: Any, outputs: Sequence[TensorDescription]) -> Mapping[str, Array]:
    """Check the arrays for results, except for symbolic dimensions; return them by name. Raises InputError if a name is
    unknown, or an array has the wrong type or shape or is read-only. `out`: arrays by name, for any of the outputs; or
    a sequence with one array per output."""
    if not isinstance(out, Mapping):
        if isinstance(out, np.ndarray) or not isinstance(out, Sequence) or len(out) != len(outputs):
            raise InputError("out must be a dict of arrays by name, or a sequence with one array per output")
        out = dict(zip((each.name for each in outputs), out, strict=True))
    described = {each.name: each for each in outputs}
    for name, array in out.items():
        if name not in described:
            raise InputError(f"out: no output is named {name!r}", f"the module gives {', '.join(described)}")
        _check_array(array, described[name])
    return out


def _check_array(array: object, output: TensorDescription) -> None:
    if type(array) is not np.ndarray or not array.flags.writeable:
        what = "a read-only array" if isinstance(array, np.ndarray) else f"{type_text(array)}"
        raise InputError(f"out: {output.name!r} is {what}, but must be a writable numpy array")
    if array.dtype != ELEMENT_TYPES[output.dtype].numpy:
        raise InputError(f"out: {output.name!r} has element type {array.dtype}; the module gives {output}")
    fits = array.ndim == len(output.shape) and all(
        isinstance(wanted, str) or size == wanted for size, wanted in zip(array.shape, output.shape, strict=True)
    )
    if not fits:
        raise InputError(f"out: {output.name!r} has shape {list(array.shape)}; the module gives {output}")


def written(results: dict[str, Any], out: Mapping[str, Array]) -> dict[str, Any]:
    """The results of a run, with those in `out` copied there. Raises InputError before any copy if a shape differs."""
    for name, array in out.items():
        if array.shape != results[name].shape:
            shapes = f"shape {list(array.shape)}, and the result has {list(results[name].shape)}"
            raise InputError(f"out: {name!r} has {shapes}")
    for name, array in out.items():
        array[...] = results[name]
        results[name] = array
    return results


class KeptResults:
    """Result buffers that each run reuses; callers receive copies."""

    __slots__ = ("_arrays", "_elements", "_results")

    def __init__(self, results: Any, arrays: Sequence[tuple[str, Array, ElementType]]) -> None:
        """`results`: TVM's array of tensors, which keeps the memory alive; `arrays`: arrays over it, by name."""
        self._results = results
        self._arrays = [(name, array) for name, array, _ in arrays]
        self._elements = {name: element for name, _, element in arrays}

    def copies(self, as_numpy: bool) -> dict[str, Any]:
        """The results of the last run by name, as arrays or DLPack tensors."""
        if as_numpy:
            return {name: array.copy() for name, array in self._arrays}
        elements = self._elements
        return {name: tensor_over(aligned_copy(array, elements[name]), elements[name]) for name, array in self._arrays}


class OutputReader:
    """Returns a run's results by name; one per module, used by all of its threads."""

    def __init__(self, outputs: Sequence[TensorDescription], parameters: Iterable[Array]) -> None:
        self.names = tuple(output.name for output in outputs)
        self._elements = tuple(ELEMENT_TYPES[output.carrier or output.dtype] for output in outputs)
        self._carried = {output.name: ELEMENT_TYPES[output.dtype] for output in outputs if output.carrier is not None}
        fast = (element.carrier is element.numpy and not MARKED_READ_ONLY for element in self._elements)
        self._named = tuple(zip(range(len(outputs)), self.names, self._elements, fast, strict=True))
        self.can_keep = bool(outputs) and not self._carried and all(each[3] for each in self._named)
        self._parameters = MemoryRanges(range_of_array(each) for each in parameters)
        self._rest = frozenset[str](), self._named
        self._counted = False
        self._checked = set[int]()  # outputs whose element types were checked; they never change
        # Half the time of indexing TVM's array from Python.
        self._size = global_function("ffi.ArraySize")
        self._item = global_function("ffi.ArrayGetItem")

    def _but(self, without: frozenset[str]) -> tuple[tuple[int, str, ElementType, bool], ...]:
        """The outputs without these, which are the same in each run of a module's sessions."""
        left_out, rest = self._rest
        if left_out is not without and left_out != without:
            rest = tuple(each for each in self._named if each[1] not in without)
            self._rest = without, rest
        return rest

    def read(
        self,
        results: Sequence[RuntimeTensor],
        inputs: Sequence[tuple[int, int]],
        as_numpy: bool,
        without: frozenset[str] = frozenset(),
        states: MemoryRanges = NO_MEMORY,
    ) -> dict[str, Any]:
        """The results by output name.

        A model may return an input, a parameter, or the same tensor twice. TVM then returns the same memory, which is
        copied for the caller. Raises InternalError if the results do not match the manifest.

        Args:
            results: TVM's array of tensors.
            inputs: address ranges (begin, end) of the input tensors.
            without: names of outputs to leave out.
            states: address ranges of a session's states.
        """
        if not self._counted:
            self._check(results)
        # Few calls and no helpers: reading is a third of a small model's time.
        named = {}
        returned: list[int] = []
        item, low, high = self._item, self._parameters.low, self._parameters.high
        for index, name, element, fast in self._but(without) if without else self._named:
            tensor = item(results, index)
            if not isinstance(tensor, _TENSOR):
                raise InternalError(f"output {name!r} of the module is {type_text(tensor)}, not a tensor")
            array = None
            if as_numpy:
                try:
                    array = _from_dlpack(tensor) if fast else array_over(tensor, element)
                except ValueError:
                    array = array_over(tensor, element)  # raises with the reason
            # Comparing numpy's types takes a tenth of the time of comparing TVM's.
            if index not in self._checked and (array is None or array.dtype is not element.numpy):
                _check_dtype(name, tensor, element)
                self._checked.add(index)
            address = tensor.data_ptr()
            shared = address in returned or (low <= address < high and address in self._parameters) or address in states
            for start, end in inputs:
                if start <= address < end or address == start:
                    shared = True
            if shared:
                array = aligned_copy(array_over(tensor, element), element)
                tensor = tensor_over(array, element)
            returned.append(address)
            named[name] = array if as_numpy else tensor
        for name, element in self._carried.items():
            if name in without:
                continue
            named[name] = _decarried(named[name], element)
        return named

    def kept(self, results: Sequence[RuntimeTensor]) -> KeptResults:
        """Results that later runs overwrite; only if `can_keep`."""
        arrays = [
            (name, array_over(self._item(results, index), element), element) for index, name, element, _ in self._named
        ]
        return KeptResults(results, arrays)

    def _check(self, results: Sequence[RuntimeTensor]) -> None:
        try:
            count = self._size(results)
        except TypeError as error:
            raise InternalError(f"the module returned {type_text(results)}, not a tuple") from error
        if count != len(self.names):
            raise InternalError(f"the module returned {count} results; its manifest names {len(self.names)}")
        self._counted = True  # a function always returns the same number


def _check_dtype(name: str, tensor: RuntimeTensor, element: ElementType) -> None:
    if tensor.dtype != element.name:
        raise InternalError(f"output {name!r} has element type {tensor.dtype}, not {element.name} as announced")


def _decarried(value: Any, element: ElementType) -> Any:
    """An output converted to its own element type."""
    if isinstance(value, np.ndarray):
        return from_carried(value, element)
    own = from_carried(np.from_dlpack(value), element)
    return tensor_over(aligned_copy(own, element), element)


def compare(
    actual: Mapping[str, Array], reference: Mapping[str, Array], tolerance: ReferenceTolerance
) -> dict[str, float]:
    """The largest absolute difference of each output; NaN equals NaN, and infinities with the same sign are equal.
    Raises VerificationError if one differs by more than the tolerance, in shape or in element type."""
    differences = {}
    for name, expected in reference.items():
        got = actual.get(name)
        if got is None or got.shape != expected.shape or got.dtype != expected.dtype:
            found = "missing" if got is None else _kind(got)
            raise VerificationError(f"output {name!r} is {found}; the reference is {_kind(expected)}")
        left, right = _wide(got), _wide(expected)
        same = (left == right) | (np.isnan(left) & np.isnan(right))
        with np.errstate(invalid="ignore", over="ignore"):
            difference = np.where(same, 0.0, np.abs(left - right))
            allowed = tolerance.absolute + tolerance.relative * np.abs(right)
        differences[name] = float(difference.max(initial=0.0))
        wrong = ~(same | (difference <= allowed))
        if wrong.any():
            raise VerificationError(
                f"output {name!r} differs from the reference in {int(wrong.sum())} of {wrong.size} elements, "
                f"by up to {differences[name]:.3g} (tolerance {tolerance.relative:g} relative, {tolerance.absolute:g})",
                "this machine computes different results from the one that compiled the module",
            )
    return differences


def _kind(array: Array) -> str:
    return f"{array.dtype}{list(array.shape)}"


def _wide(array: Array) -> Array:
    return array.astype(np.float64)
