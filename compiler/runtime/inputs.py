"""Checks a caller's inputs against the manifest and makes them readable for generated code.

Requirements on a model's inputs beyond names, types and ranks, checked before a run.

The C++ runtime makes the same checks, with the same messages (`device/cpp/requirements.cc`): change both, and the table
of cases that tests both (`tests/compiler/runtime/requirement_cases.json`).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from compiler.artifact.dtypes import ELEMENT_TYPES, ElementType, as_carried
from compiler.artifact.manifest import IndexRequirement, Requirement, TensorDescription
from compiler.errors import ArtifactError, InputError, type_text
from compiler.runtime.fitting_sizes import holds
from compiler.runtime.tensors import (
    ALIGNMENT,
    InputMemory,
    MemoryRanges,
    Staging,
    array_over,
    array_over_strided,
    range_of,
    tensor_over,
)
from compiler.runtime.tvm_runtime import tvm_ffi
from compiler.support.formula import FormulaError, parsed

if TYPE_CHECKING:
    from schedules.ir.tvm_types import RuntimeTensor

# Up to this size copying is cheaper than checking whether the memory can be used in place.
_ALWAYS_COPY_BYTES = 32 << 10
_from_dlpack = tvm_ffi.from_dlpack
_CPU_DEVICES = (1, 3)  # DLPack: ordinary memory, and CUDA's pinned host memory


class Held:
    """A session's tensor used as an input: of the right element type, in memory that kernels can read.

    `range` is its address range: its first address and the one after the last.
    """

    __slots__ = ("range", "shape", "tensor")

    def __init__(self, tensor: RuntimeTensor, itemsize: int) -> None:
        self.tensor = tensor
        self.shape = tuple(int(size) for size in tensor.shape)
        start = int(tensor.data_ptr())
        self.range = (start, start + int(tensor.numel()) * itemsize)


class HeldStates(dict[str, Held]):
    """The states of a session by input. `bound`: result of the first binding; None before."""

    bound: _BoundStates | None = None


class _BoundStates:
    """States as arguments of `main`, with the positions of the other inputs.

    Attributes:
        states: the bound states.
        sizes: their symbolic dimensions.
        tensors: in the order of `main`, None for other inputs.
        memory: address ranges of these.
        others: the other inputs and their positions.
        names: their names.
    """

    __slots__ = ("memory", "names", "others", "sizes", "states", "tensors")

    def __init__(self, states: HeldStates, specs: Sequence[InputSpec]) -> None:
        self.states = list(states.values())
        self.sizes: Dimensions = {}
        self.tensors: list[Any] = []
        self.memory = MemoryRanges(each.range for each in self.states)
        self.others: list[tuple[int, InputSpec]] = []
        for index, spec in enumerate(specs):
            state = states.get(spec.name)
            if state is None:
                self.others.append((index, spec))
            else:
                _check_shape(spec, state.shape, self.sizes)
            self.tensors.append(None if state is None else state.tensor)
        self.names = {spec.name for _, spec in self.others}

    def holds(self, states: HeldStates) -> bool:
        """True if these are the states that were bound."""
        return self.states == list(states.values())


class InputSpec:
    """One input for the fast path: name, element type, and its shape if that has no symbolic dimension."""

    __slots__ = ("carried", "dtype", "element", "name", "plain", "rank", "shape", "static", "text")

    def __init__(self, description: TensorDescription) -> None:
        self.name = description.name
        self.element = ELEMENT_TYPES[description.carrier or description.dtype]
        self.dtype = ELEMENT_TYPES[description.dtype].numpy
        self.carried = description.carrier is not None
        self.shape = description.shape
        self.rank = len(description.shape)
        self.static = None if any(isinstance(size, str) for size in self.shape) else self.shape
        self.text = str(description)
        self.plain = self.element.carrier is self.element.numpy


Dimensions = dict[str, tuple[int, str]]
"""The value of each symbolic dimension, and the first input that has it."""


class InputBinder:
    """Checks inputs and converts them to TVM tensors; one instance per module, shared by its threads."""

    def __init__(
        self,
        inputs: Sequence[TensorDescription],
        requirements: Sequence[Requirement] = (),
        indices: Sequence[IndexRequirement] = (),
    ) -> None:
        self._requirements = RequirementChecker(inputs, requirements, indices)
        self.specs = tuple(InputSpec(description) for description in inputs)
        self.names = tuple(spec.name for spec in self.specs)
        self._itemsizes = tuple(spec.element.numpy.itemsize for spec in self.specs)

    def bind(self, inputs: object, memory: InputMemory) -> list[RuntimeTensor]:
        """Return the TVM tensors for `main`, in its order; `memory` belongs to one run at a time. Raises InputError if
        names, ranks, shapes, dimensions or element types do not match, or a requirement is violated."""
        if not memory.copied_again(inputs):
            self._bind(self._in_order(inputs), memory)
        if self._requirements.any:
            self._requirements.check(memory.sizes, memory.tensors)
        return memory.tensors

    def bind_beside(self, inputs: dict[str, Any], states: HeldStates, memory: InputMemory) -> list[RuntimeTensor]:
        """Like `bind`, for a session's states and its other inputs. States that were bound before are not checked
        again: a language model has more of them than other inputs."""
        bound = states.bound
        if bound is None or inputs.keys() != bound.names or not bound.holds(states):
            inputs.update(states)
            tensors = self.bind(inputs, memory)
            if bound is None:  # growing states are new tensors after each run
                states.bound = _BoundStates(states, self.specs)
            return tensors
        dimensions, tensors, ranges = bound.sizes.copy(), bound.tensors.copy(), []
        for index, spec in bound.others:
            tensors[index] = _bound(inputs[spec.name], spec, memory.stages[index], dimensions)
            ranges.append(range_of(tensors[index], self._itemsizes[index]))
        memory.keep(tensors, {name: size for name, (size, _) in dimensions.items()}, ranges, bound.memory)
        if self._requirements.any:
            self._requirements.check(memory.sizes, memory.tensors)
        return memory.tensors

    def _bind(self, values: Sequence[object], memory: InputMemory) -> None:
        """Check every name, shape and element type, and keep the tensors in `memory`."""
        dimensions: Dimensions = {}
        tensors = []
        ranges = []
        checked: set[Any] = set()  # states have few different shapes
        for spec, value, stage, itemsize in zip(self.specs, values, memory.stages, self._itemsizes, strict=True):
            if type(value) is Held:
                shapes = (spec.shape, value.shape)
                if shapes not in checked:
                    _check_shape(spec, value.shape, dimensions)
                    checked.add(shapes)
                tensors.append(value.tensor)
                ranges.append(value.range)
            else:
                tensors.append(_bound(value, spec, stage, dimensions))
                ranges.append(range_of(tensors[-1], itemsize))
        memory.keep(tensors, {name: size for name, (size, _) in dimensions.items()}, ranges)
        if all(map(_always_copied, values, self.specs)):
            memory.copies(self.names)

    def _in_order(self, inputs: object) -> Sequence[Any]:
        if type(inputs) is dict or isinstance(inputs, Mapping):  # isinstance takes five times as long
            try:
                if len(inputs) == len(self.names):
                    return [inputs[name] for name in self.names]
            except KeyError:
                pass  # reported below
            raise self._name_error(inputs)
        if isinstance(inputs, str | bytes | np.ndarray) or not isinstance(inputs, Sequence):
            raise InputError(
                f"inputs must be a dict by name or a sequence in order, not {type(inputs).__name__}",
                f"the module takes {self._signature()}",
            )
        if len(inputs) != len(self.names):
            raise InputError(
                f"expected {len(self.names)} input{'s' * (len(self.names) != 1)}, got {len(inputs)}",
                f"the module takes {self._signature()}",
            )
        return inputs

    def _signature(self) -> str:
        return "; ".join(spec.text for spec in self.specs) or "no inputs"

    def _name_error(self, inputs: Mapping[object, object]) -> InputError:
        missing = [name for name in self.names if name not in inputs]
        unknown = [name for name in inputs if name not in self.names]
        parts = []
        if unknown:
            guesses = []
            for name in unknown:
                near = difflib.get_close_matches(str(name), missing or self.names, n=1, cutoff=0.5)
                guesses.append(f"{name!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
            parts.append(f"no input is named {', '.join(guesses)}")
        if missing:
            parts.append(f"missing input{'s' * (len(missing) > 1)}: {', '.join(map(repr, missing))}")
        return InputError("; ".join(parts), f"the module takes {self._signature()}")


def _check_shape(spec: InputSpec, shape: tuple[int, ...], dimensions: Dimensions) -> None:
    """Compare a shape with the described one, and symbolic dimensions with their values from other inputs."""
    if len(shape) != spec.rank:
        raise InputError(
            f"input {spec.name!r} has rank {len(shape)}, shape {list(shape)}; expected rank {spec.rank}",
            f"the module takes {spec.text}",
        )
    for axis, (actual, expected) in enumerate(zip(shape, spec.shape, strict=True)):
        if isinstance(expected, int):
            if actual != expected:
                raise InputError(
                    f"input {spec.name!r} has shape {list(shape)}: dimension {axis} is {actual} and must be {expected}",
                    f"the module takes {spec.text}",
                )
            continue
        value, source = dimensions.setdefault(expected, (actual, spec.name))
        if actual != value:
            origin = "an earlier dimension of this input" if source == spec.name else f"input {source!r}"
            raise InputError(
                f"input {spec.name!r} has shape {list(shape)}: dimension {axis} ({expected}) is {actual}, "
                f"but {origin} has {expected} = {value}"
            )


def _bound(value: object, spec: InputSpec, stage: Staging, dimensions: Dimensions) -> RuntimeTensor:
    """The tensor of an input that is not a session's state."""
    if type(value) is np.ndarray and (value.dtype is spec.dtype or value.dtype == spec.dtype):
        if value.shape != spec.static:
            _check_shape(spec, value.shape, dimensions)
        return _from_numpy(value, spec, stage)
    return _from_other(value, spec, stage, dimensions)


def _always_copied(value: object, spec: InputSpec) -> bool:
    """True if an input is always copied."""
    return type(value) is np.ndarray and value.nbytes <= _ALWAYS_COPY_BYTES and not spec.carried


def _from_numpy(value: np.ndarray, spec: InputSpec, stage: Staging) -> RuntimeTensor:
    """Bind an array with the right element type and shape: in place, or as a copy."""
    if spec.carried:
        value = as_carried(value, spec.element)
    flags = value.flags
    if value.nbytes > _ALWAYS_COPY_BYTES and flags.writeable and flags.c_contiguous:
        tensor = _from_dlpack(value) if spec.plain else tensor_over(value, spec.element)
        if tensor.data_ptr() % ALIGNMENT == 0:  # numpy takes a microsecond to return the address
            return tensor
    return stage.filled(value, spec.element)


def _from_other(value: object, spec: InputSpec, stage: Staging, dimensions: Dimensions) -> RuntimeTensor:
    """Bind anything but an array of the right type: a numpy scalar or subclass, or a DLPack tensor."""
    if isinstance(value, np.ndarray | np.generic):
        return _from_numpy_like(value, spec, stage, dimensions)
    if not hasattr(value, "__dlpack__"):
        raise InputError(
            f"input {spec.name!r} is {type_text(value)}, not an array",
            f"pass a numpy array or a DLPack tensor: np.asarray(value, dtype={_numpy_name(spec.element)})",
        )
    tensor, dtype = _import_dlpack(value, spec.name)
    if dtype != spec.element.name:
        raise _dtype_error(spec, dtype)
    if tensor.shape != spec.static:
        _check_shape(spec, tensor.shape, dimensions)
    if tensor.is_contiguous() and tensor.data_ptr() % ALIGNMENT == 0:
        return tensor
    return stage.filled(array_over_strided(tensor, spec.element), spec.element)


def _from_numpy_like(value: object, spec: InputSpec, stage: Staging, dimensions: Dimensions) -> RuntimeTensor:
    if isinstance(value, np.ma.MaskedArray):
        raise InputError(f"input {spec.name!r} is a masked array", "fill it: array.filled(value)")
    array = np.asarray(value)
    if array.dtype.kind == "O":
        raise InputError(
            f"input {spec.name!r} is an array of Python objects", f"its elements must be {_numpy_name(spec.element)}"
        )
    if array.dtype != spec.dtype:
        raise _dtype_error(spec, str(array.dtype))
    _check_shape(spec, array.shape, dimensions)
    return _from_numpy(array, spec, stage)


def _dtype_error(spec: InputSpec, given: str) -> InputError:
    return InputError(
        f"input {spec.name!r} has element type {given}; the module takes {spec.text}",
        f"inputs are not cast implicitly; cast explicitly: array.astype({_numpy_name(spec.element)})",
    )


def _numpy_name(element: ElementType) -> str:
    package = "np" if element.carrier is element.numpy else "ml_dtypes"
    return f"{package}.{element.name}"


def _import_dlpack(value: Any, name: str) -> tuple[RuntimeTensor, str]:
    """Return a TVM tensor over another framework's tensor, and the name of its element type."""
    try:
        if hasattr(value, "resolve_neg"):
            value = value.resolve_neg()  # DLPack would lose torch's lazy negation, as in z.conj().imag
        device = value.__dlpack_device__()
        if device[0] not in _CPU_DEVICES:
            raise InputError(
                f"input {name!r} is on another device (DLPack device {tuple(map(int, device))})",
                "move it to the CPU first: tensor.cpu()",
            )
        tensor = tvm_ffi.from_dlpack(value)
        return tensor, str(tensor.dtype)
    except InputError:
        raise
    except Exception as error:  # each framework has its own exception classes
        raise InputError(
            f"input {name!r} ({type(value).__name__}) cannot be imported by DLPack: {_first_line(error)}",
            "pass a plain tensor in ordinary memory (for torch: tensor.detach().contiguous())",
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


Sizes = dict[str, int]
_FEW = 32  # up to this many numbers Python compares faster than NumPy
_UNSIGNED = {size: np.dtype(f"u{size}") for size in (1, 2, 4, 8)}
_largest = np.maximum.reduce  # called by arrays' `max`


@dataclass(frozen=True)
class _Size:
    """A formula of input dimensions, and the requirement that contains it."""

    formula: str
    symbols: Mapping[str, str]
    where: str

    def check(self, dimensions: set[str]) -> None:
        """Raise ArtifactError unless it is a formula of the inputs' dimensions."""
        try:
            for name in sorted(parsed(self.formula).names):
                if self.symbols.get(name) not in dimensions:
                    raise FormulaError(f"{name!r} is not a dimension of an input")
        except FormulaError as error:
            raise ArtifactError(
                f"the module's requirement {self.formula!r} is not valid: {error}", "compile the model again"
            ) from error

    def value(self, sizes: Mapping[str, int]) -> int:
        """The formula's value. Raises InputError if it has none."""
        try:
            return parsed(self.formula).value({name: sizes[at] for name, at in self.symbols.items() if at in sizes})
        except FormulaError as error:
            raise InputError(f"{self.where}: {error}", _given(self.symbols, sizes)) from error


@dataclass(frozen=True)
class _Index:
    """The position of an input of indices, its element type, and the formulas of their range."""

    position: int
    element: ElementType
    requirement: IndexRequirement
    size: _Size
    least: _Size | None

    def range(self, sizes: Mapping[str, int]) -> tuple[int, int]:
        """(lowest value, the one after the highest). Raises InputError if a formula has no value."""
        high = self.size.value(sizes)
        if self.least is not None:
            return self.least.value(sizes), high
        return -max(0, high), max(0, high)


class RequirementChecker:
    """Checks inputs against a module's requirements; sizes that passed last time are not checked again.

    `any` is False if there is nothing to check. Raises ArtifactError if a requirement is not a formula of the inputs'
    dimensions, or indices are not those of an input.
    """

    def __init__(
        self,
        inputs: Sequence[TensorDescription],
        requirements: Sequence[Requirement],
        indices: Sequence[IndexRequirement],
    ) -> None:
        dimensions = {size for description in inputs for size in description.shape if isinstance(size, str)}
        self._relations = [_relation(each, dimensions) for each in requirements]
        self._indices = [_index(each, inputs, dimensions) for each in indices]
        self._good: tuple[Sizes, tuple[tuple[int, int], ...]] | None = None
        self.any = bool(self._relations or self._indices)

    def check(self, sizes: Sizes, tensors: Sequence[Any]) -> None:
        """Check the sizes of the symbolic dimensions, and TVM's tensors of the inputs. Raises InputError if they
        violate a requirement; names it and the relation."""
        good = self._good
        if good is None or sizes != good[0]:
            for requirement, left, right in self._relations:
                _check_relation(requirement, left.value(sizes), right.value(sizes), sizes)
            self._good = good = sizes, tuple(index.range(sizes) for index in self._indices)
        for index, (low, high) in zip(self._indices, good[1], strict=True):
            values = array_over(tensors[index.position], index.element)
            if values.size and not _all_within(values, low, high):
                _check_values(index.requirement, _extremes(values), low, high)


def _relation(requirement: Requirement, dimensions: set[str]) -> tuple[Requirement, _Size, _Size]:
    left, right = (
        _Size(formula, requirement.symbols, requirement.where) for formula in (requirement.left, requirement.right)
    )
    left.check(dimensions)
    right.check(dimensions)
    return requirement, left, right


def _index(requirement: IndexRequirement, inputs: Sequence[TensorDescription], dimensions: set[str]) -> _Index:
    size = _Size(requirement.size, requirement.symbols, requirement.where)
    size.check(dimensions)
    least = None if requirement.least is None else _Size(requirement.least, requirement.symbols, requirement.where)
    if least is not None:
        least.check(dimensions)
    for position, description in enumerate(inputs):
        element = ELEMENT_TYPES[description.dtype]
        if description.name == requirement.input and element.numpy.kind in "iu" and description.carrier is None:
            return _Index(position, element, requirement, size, least)
    raise ArtifactError(
        f"the module's indices {requirement.input!r} are not an integer input", "compile the model again"
    )


def _all_within(values: np.ndarray, low: int, high: int) -> bool:
    """True if all numbers are in [max(low, 0), high), by a single pass over large arrays: as unsigned numbers, negative
    ones are large."""
    if values.size <= _FEW or low > 0:
        return False
    return bool(_largest(values.view(_UNSIGNED[values.itemsize]), None) < high)


def _extremes(values: np.ndarray) -> tuple[int, int]:
    """The minimum and maximum of integers, at least one."""
    if values.size <= _FEW:
        numbers = values.ravel().tolist()
        return min(numbers), max(numbers)
    return int(values.min()), int(values.max())


def _check_values(index: IndexRequirement, found: tuple[int, int], low: int, high: int) -> None:
    least, largest = found
    if least < low or largest >= high:
        wrong = least if least < low else largest
        if index.least is None:
            what, hint = f"the index {wrong}", "its elements index an axis of that size"
        else:
            what, hint = f"the value {wrong}", "its elements are indices, lengths or counts"
        raise InputError(f"{index.where}: input {index.input!r} holds {what}, outside of [{low}, {high})", hint)


def _check_relation(requirement: Requirement, left: int, right: int, sizes: Mapping[str, int]) -> None:
    if holds(requirement.relation, left, right):
        return
    first, second = (_term(*each, requirement) for each in ((requirement.left, left), (requirement.right, right)))
    text = {
        "equal": f"{first} must equal {second}",
        "at least": f"{first} must be at least {second}",
        "broadcast": f"{first} and {second} must be equal, or one of them must be 1",
    }[requirement.relation]
    raise InputError(f"{requirement.where}: {text}", _given(requirement.symbols, sizes))


def _given(symbols: Mapping[str, str], sizes: Mapping[str, int]) -> str:
    given = sorted({at for at in symbols.values() if at in sizes})
    return f"the inputs' sizes do not fit this model: {', '.join(f'{at} = {sizes[at]}' for at in given)}"


def _term(formula: str, value: int, requirement: Requirement) -> str:
    """A formula and its value, or a single dimension's own name and its value."""
    name = requirement.symbols.get(formula, formula)
    return name if name == str(value) else f"{name} = {value}"
