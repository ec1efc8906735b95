"""The model's inputs: which are fixed, which stay, and the shape of each."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import tvm
from tvm import relax

from compiler.errors import InputError, Refusal, UnsupportedModelError
from compiler.frontends.imported_model import TensorSpec
from compiler.frontends.onnx import dtypes
from compiler.frontends.onnx.builder import Builder
from compiler.frontends.onnx.structure import declared_size
from compiler.frontends.onnx.symbolic import Dim
from compiler.frontends.onnx.values import Constant, OptionalValue, Runtime, SequenceValue, Value

Shapes = Mapping[str, Sequence[int | str]]


@dataclass(frozen=True)
class RuntimeInput:
    """A tensor that the module takes: its true name, its variable, its value in the graph."""

    spec: TensorSpec
    variable: tvm.ir.Var
    value: Runtime


def fixed_values(
    graph: onnx.GraphProto, initializers: Mapping[str, Constant], constants: Mapping[str, object] | None
) -> dict[str, Value]:
    """Values of the inputs that the caller fixes. Raises InputError for names, types or shapes that do not fit."""
    specs = {spec.name: spec for spec in graph.input}
    fixed: dict[str, Value] = {}
    for name, value in (constants or {}).items():
        if name not in specs:
            raise InputError(_unknown_name("constants", name, list(specs)))
        fixed[name] = _fixed_value(specs[name], value)
    return fixed


def _fixed_value(spec: onnx.ValueInfoProto, value: object) -> Value:
    kind = spec.type.WhichOneof("value")
    if kind == "optional_type":
        if value is None:
            return OptionalValue(None)
        inner = onnx.ValueInfoProto(name=spec.name, type=spec.type.optional_type.elem_type)
        return OptionalValue(_fixed_value(inner, value))
    if kind == "sequence_type":
        element = onnx.ValueInfoProto(name=spec.name, type=spec.type.sequence_type.elem_type)
        number = element.type.tensor_type.elem_type
        items = [_fixed_value(element, item) for item in value]  # type: ignore[attr-defined]
        return SequenceValue(items, dtypes.dtype_name(number))
    return _fixed_tensor(spec, value)


def _fixed_tensor(spec: onnx.ValueInfoProto, value: object) -> Constant:
    array = np.asarray(value)
    tensor = spec.type.tensor_type
    expected = dtypes.dtype_name(tensor.elem_type)
    found = "string" if array.dtype.kind in "OUS" else array.dtype.name
    if expected is not None and found != expected:
        raise InputError(f"the constant for input {spec.name!r} is {found}, the model's input {expected}")
    if found == "string":
        array = array.astype(object)
    if tensor.HasField("shape"):
        declared = map(declared_size, tensor.shape.dim)
        dims = [size if isinstance(size, int) else None for size in declared]
        if len(dims) != array.ndim or any(d not in (None, s) for d, s in zip(dims, array.shape, strict=True)):
            raise InputError(f"the constant for input {spec.name!r} has shape {array.shape}, the model's input {dims}")
    return Constant(array, found)


def runtime_inputs(
    graph: onnx.GraphProto, excluded: set[str], shapes: Shapes | None, builder: Builder
) -> list[RuntimeInput]:
    """The inputs that stay, with symbolic sizes shared by name and the caller's shapes applied.

    Raises InputError for shapes that do not fit, UnsupportedModelError for inputs that are not tensors.
    """
    names = [spec.name for spec in graph.input]
    for name in shapes or {}:
        if name not in names:
            raise InputError(_unknown_name("shapes", name, names))
    wanted = [spec for spec in graph.input if spec.name not in excluded]
    _refuse_other_than_tensors(wanted)
    declared = {spec.name: _dims(spec, (shapes or {}).get(spec.name)) for spec in wanted}
    sizes = _fixed_sizes(wanted, declared)
    symbols: dict[str, Dim] = {}
    return [_runtime_input(spec, declared[spec.name], sizes, symbols, builder) for spec in wanted]


def _runtime_input(
    spec: onnx.ValueInfoProto, dims: list[int | str], sizes: dict[str, int], symbols: dict[str, Dim], builder: Builder
) -> RuntimeInput:
    shape: list[Dim] = []
    for dim in dims:
        size = sizes.get(dim, dim) if isinstance(dim, str) else dim
        if isinstance(size, str):
            if size not in symbols:
                symbols[size] = builder.dimension(size)
                builder.checks.inputs[symbols[size]] = size
            shape.append(symbols[size])
        else:
            shape.append(size)
    dtype = dtypes.NAMES[spec.type.tensor_type.elem_type]
    carrier = dtypes.carrier(dtype)
    variable = tvm.ir.Var(builder.unique_name(spec.name), relax.TensorType(shape, carrier))
    builder.checks.input_names[variable] = spec.name
    names = tuple(sizes.get(dim, dim) if isinstance(dim, str) else dim for dim in dims)
    described = TensorSpec(spec.name, names, dtype, dtypes.carrier_of(dtype))
    return RuntimeInput(described, variable, Runtime(variable, dtype, frozenset({spec.name})))


def _refuse_other_than_tensors(specs: list[onnx.ValueInfoProto]) -> None:
    refusals = []
    for spec in specs:
        kind = spec.type.WhichOneof("value")
        dtype = dtypes.dtype_name(spec.type.tensor_type.elem_type) if kind == "tensor_type" else None
        if kind != "tensor_type":
            reason = f"is of kind {(kind or 'unknown').removesuffix('_type')}; only tensors can be passed at run time"
            refusals.append(Refusal("model input", spec.name, reason))
        elif dtype is None or not dtypes.is_carried(dtype):
            refusals.append(Refusal("model input", spec.name, f"{dtype} tensors are not supported at run time"))
    if refusals:
        raise UnsupportedModelError(refusals, "fix the value when compiling: compile(..., constants={name: value})")


def _dims(spec: onnx.ValueInfoProto, override: Sequence[int | str] | None) -> list[int | str]:
    """A declared shape with the caller's put over it; a size without a name gets one of its own."""
    tensor = spec.type.tensor_type
    if not tensor.HasField("shape"):
        if override is None:
            hint = f"give it: shapes={{{spec.name!r}: (...)}}"
            raise InputError(f"the model does not say how many dimensions its input {spec.name!r} has", hint)
        return [_checked_size(spec.name, size) for size in override]
    dims: list[int | str] = []
    for axis, dim in enumerate(tensor.shape.dim):
        size = declared_size(dim)
        dims.append(f"{spec.name}_dim{axis}" if size is None else size)
    if override is None:
        return dims
    if len(override) != len(dims):
        raise InputError(f"shapes: input {spec.name!r} has {len(dims)} dimensions {tuple(dims)}, not {len(override)}")
    return [_checked_size(spec.name, size) for size in override]


def other_sizes(graph: onnx.GraphProto, shapes: Shapes | None) -> str | None:
    """Inputs that the caller gives other sizes than the model declares, as text; None where there are none."""
    found = []
    for spec in graph.input:
        given = (shapes or {}).get(spec.name)
        if given is None or not spec.type.tensor_type.HasField("shape"):
            continue
        declared = [declared_size(dim) for dim in spec.type.tensor_type.shape.dim]
        if any(isinstance(own, int) and size != own for size, own in zip(given, declared, strict=False)):
            texts = [", ".join("?" if size is None else str(size) for size in sizes) for sizes in (given, declared)]
            found.append(f"{spec.name!r} as [{texts[0]}], which it declares as [{texts[1]}]")
    return ", and ".join(found) or None


def _checked_size(name: str, size: object) -> int | str:
    if isinstance(size, str) and size and not size.lstrip("+-").isdecimal():
        return size
    if isinstance(size, (int, np.integer)) and not isinstance(size, bool) and size >= 0:
        return int(size)
    raise InputError(
        f"shapes: {size!r} is not a size of input {name!r}",
        "use an int from 0 on, or the name of a symbolic size",
    )


def _fixed_sizes(specs: list[onnx.ValueInfoProto], declared: dict[str, list[int | str]]) -> dict[str, int]:
    """Sizes that the caller fixed, by the model's own name of the dimension, so that they reach every input."""
    sizes: dict[str, int] = {}
    for spec in specs:
        dims = spec.type.tensor_type.shape.dim
        for dim, size in zip(dims, declared[spec.name], strict=False):
            name = declared_size(dim)
            if isinstance(name, str) and isinstance(size, int) and sizes.setdefault(name, size) != size:
                raise InputError(f"shapes: the dimension {name!r} is given two sizes, {sizes[name]} and {size}")
    return sizes


def _unknown_name(argument: str, name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, 1)
    suggestion = f"did you mean {near[0]!r}?" if near else f"its inputs are {', '.join(map(repr, names))}"
    return f"{argument}: the model has no input {name!r}; {suggestion}"
