"""Tensors and requests in the Open Inference Protocol: as JSON, or as bytes after it (the binary extension)."""

from __future__ import annotations

import math
from array import array as typed_array
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from compiler.artifact import TensorDescription
from compiler.errors import InputError
from compiler.serving.app.http import mapping, parse_json
from compiler.serving.limits import Limits
from compiler.serving.request import Array
from compiler.support.shown import shown

_TYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(bool),
    **{f"{kind.upper()}{bits}": np.dtype(f"{kind}{bits}") for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_NAMES = {str(dtype): name for name, dtype in _TYPES.items()}
_NAMES_OF = {dtype: name for name, dtype in _TYPES.items()}  # cached, since formatting a dtype's name is slow
# Element types whose JSON lists are converted by the first number's type, without numpy's search for a common type.
_CODES: dict[type, dict[np.dtype[Any], str]] = {
    float: {np.dtype(np.float32): "f", np.dtype(np.float64): "d"},
    int: {np.dtype(code): code for code in "bBhHiIqQ"},
}
_NO_CODES: dict[np.dtype[Any], str] = {}
_KINDS = {"b": "b", "i": "iu", "u": "iu"}  # of numbers that are read as a kind of element type; else any
_MAX_RANK = 64
_MAX_SIZE = 1 << 48
# What orjson writes from memory.
_WRITTEN = frozenset(dtype for name, dtype in _TYPES.items() if name != "BF16")


def type_name(dtype: str) -> str:
    """Return the protocol's name of an element type; types unknown to it keep their own name."""
    return _NAMES.get(dtype, dtype.upper())


def metadata(tensor: TensorDescription) -> dict[str, Any]:
    """Describe a tensor in a model's metadata; dynamic dimensions are -1."""
    shape = [size if isinstance(size, int) else -1 for size in tensor.shape]
    return {"name": tensor.name, "datatype": type_name(tensor.dtype), "shape": shape}


def read_inputs(listed: Any, binary: memoryview, limits: Limits) -> dict[str, Array]:
    """Read the inputs of a request. Raises InputError if names, types, shapes or data are invalid. `binary`: bytes
    after the JSON; arrays are views of it if alignment permits."""
    if not isinstance(listed, list) or not listed:
        raise InputError("'inputs' must be a list of tensors")
    limits.check("tensors", len(listed))
    inputs: dict[str, Array] = {}
    at = 0
    for each in listed:
        tensor = mapping(each, "a tensor")
        name, shape = tensor.get("name"), tensor.get("shape")
        if not isinstance(name, str):
            raise InputError(f"a tensor's name must be a string, not {shown(name)}")
        if name in inputs:
            raise InputError(f"input {shown(name)} is given twice")
        dtype = _type_of(tensor.get("datatype"), name)
        sizes = _shape_of(shape, name)
        parameters = tensor.get("parameters")
        nbytes = mapping(parameters, "'parameters'").get("binary_data_size") if parameters else None
        if nbytes is None:
            inputs[name] = _from_list(tensor.get("data"), dtype, sizes, name)
            continue
        if isinstance(nbytes, bool) or not isinstance(nbytes, int) or not 0 <= nbytes <= len(binary) - at:
            raise InputError(f"input {shown(name)}: binary_data_size {shown(nbytes)} is not in the request's body")
        inputs[name] = _from_bytes(binary[at : at + nbytes], dtype, sizes, name)
        at += nbytes
    if at != len(binary):
        raise InputError(f"{len(binary) - at} bytes after the JSON do not belong to any input")
    return inputs


def _type_of(value: Any, name: str) -> np.dtype[Any]:
    dtype = _TYPES.get(value) if isinstance(value, str) else None
    if dtype is None:
        raise InputError(f"input {shown(name)} has datatype {shown(value)}", f"known are {', '.join(_TYPES)}")
    return dtype


def _shape_of(value: Any, name: str) -> tuple[int, ...]:
    fits = isinstance(value, list) and len(value) <= _MAX_RANK
    for size in value if fits else ():  # a loop is twice as fast as a generator
        fits = fits and type(size) is int and 0 <= size < _MAX_SIZE
    if not fits or math.prod(size or 1 for size in value) > _MAX_SIZE:  # numpy multiplies all sizes, even if one is 0
        raise InputError(f"input {shown(name)} has shape {shown(value)}; expected a list of sizes")
    return tuple(value)


def _from_bytes(data: memoryview, dtype: np.dtype[Any], shape: tuple[int, ...], name: str) -> Array:
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise InputError(
            f"input {shown(name)} of shape {list(shape)} is given in {len(data)} bytes, which do not fit it"
        )
    little = np.frombuffer(data, dtype.newbyteorder("<") if dtype.kind in "iuf" else dtype)
    array: Array = little.astype(dtype, copy=False).reshape(shape)
    if dtype.kind == "b" and array.size and array.view(np.uint8).max() > 1:
        raise InputError(f"input {shown(name)} holds bytes that are neither 0 nor 1")
    return array


def _from_list(data: Any, dtype: np.dtype[Any], shape: tuple[int, ...], name: str) -> Array:
    if not isinstance(data, list):
        raise InputError(f"input {shown(name)} has no list as its data")
    if data and (code := _CODES.get(type(data[0]), _NO_CODES).get(dtype)) and len(data) == math.prod(shape):
        try:
            return np.frombuffer(typed_array(code, data), dtype).reshape(shape)
        except (TypeError, OverflowError):
            pass  # nested or malformed: converted by the slower path
    try:
        array = np.asarray(data)
    except ValueError as error:
        raise InputError(f"the data of input {shown(name)} is ragged") from error
    if array.size != math.prod(shape):
        raise InputError(f"input {shown(name)} of shape {list(shape)} is given {array.size} values")
    kinds = _KINDS.get(dtype.kind, "iuf")
    if array.size and array.dtype.kind not in kinds:
        raise InputError(f"the data of input {shown(name)} is not of datatype {_NAMES[str(dtype)]}")
    if array.size and dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise InputError(f"input {shown(name)} holds a value outside of {_NAMES[str(dtype)]}")
    with np.errstate(over="ignore"):
        return array.astype(dtype).reshape(shape)


def write_outputs(
    outputs: Mapping[str, Array], binary: Mapping[str, bool], by_default: bool
) -> tuple[list[dict[str, Any]], list[bytes]]:
    """Return the outputs of an answer, and the bytes after its JSON. Raises InputError if an output's element type has
    no name in the protocol."""
    listed: list[dict[str, Any]] = []
    chunks: list[bytes] = []
    for name, array in outputs.items():
        datatype = _NAMES_OF.get(array.dtype)
        if datatype is None:
            raise InputError(f"output {name!r} has element type {array.dtype}, for which the protocol has no name")
        entry: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(array.shape)}
        if binary.get(name, by_default):
            content = np.ascontiguousarray(array).tobytes()
            entry["parameters"] = {"binary_data_size": len(content)}
            chunks.append(content)
        else:
            flat = array.reshape(-1) if array.flags.c_contiguous else np.ascontiguousarray(array).reshape(-1)
            entry["data"] = flat if array.dtype in _WRITTEN else flat.astype(np.float32)
        listed.append(entry)
    return listed, chunks


def wanted_outputs(listed: object, limits: Limits) -> tuple[tuple[str, ...] | None, dict[str, bool]]:
    """Return the requested outputs, and which of them are requested as bytes. Raises InputError."""
    if listed is None:
        return None, {}
    if not isinstance(listed, Sequence) or isinstance(listed, str):
        raise InputError("'outputs' must be a list")
    limits.check("tensors", len(listed))
    names, binary = [], {}
    for each in listed:
        output = mapping(each, "an output")
        name = output.get("name")
        if not isinstance(name, str):
            raise InputError(f"an output's name must be a string, not {shown(name)}")
        parameters = mapping(output.get("parameters") or {}, "'parameters'")
        if "classification" in parameters:
            raise InputError(
                "the extension 'classification' is not supported", "request the output, and sort it in the client"
            )
        if "binary_data" in parameters:
            binary[name] = bool(parameters["binary_data"])
        names.append(name)
    return tuple(names) or None, binary


_NO_PARAMETERS: dict[str, Any] = {}


class Inference(NamedTuple):
    """The contents of an inference request.

    Attributes:
        inputs: by name.
        names: names of the requested outputs; None for all.
        as_bytes: True for outputs requested as bytes, False as JSON; unspecified outputs are missing.
        parameters, identifier: unchanged from the request.
    """

    inputs: dict[str, Array]
    names: tuple[str, ...] | None
    as_bytes: Mapping[str, bool]
    parameters: Mapping[str, Any]
    identifier: str


def read_inference(content: bytes | bytearray | memoryview, binary: memoryview, limits: Limits) -> Inference:
    """Read the JSON of a request, and the tensor bytes after it. Raises InputError."""
    body = mapping(parse_json(content), "the request")
    parameters = mapping(body.get("parameters") or _NO_PARAMETERS, "'parameters'")
    names, as_bytes = wanted_outputs(body.get("outputs"), limits)
    inputs = read_inputs(body.get("inputs"), binary, limits)
    identifier = body.get("id", "")
    if not isinstance(identifier, str):
        raise InputError(f"'id' must be a string, not {shown(identifier)}")
    return Inference(inputs, names, as_bytes, parameters, identifier)
