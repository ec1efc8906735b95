"""Loads a path, bytes or a ModelProto as a model with validated structure.

All later code may assume that opset versions exist, every name is defined exactly once and before its use, every
constant's size fits its shape, every node has the inputs and attributes its operator requires, and functions are not
recursive. `onnx.checker` is not used: it crashes on some broken files and rejects some valid ones.

Initializers, inline or in an external file, become arrays: validated before use, read on first access.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, numpy_helper

from compiler.errors import InvalidModelError, StorageError
from compiler.frontends.onnx import dtypes
from compiler.frontends.onnx.structure import check_graph, check_opsets, check_text, normalized_domain, ordered_nodes
from compiler.frontends.onnx.values import Constant
from compiler.support.model_files import FORMATS, check_exists, check_folder, check_is_model_data, check_is_model_file

ModelSource = str | os.PathLike[str] | bytes | onnx.ModelProto
FunctionKey = tuple[str, str]

_MAX_PROTOBUF = 2**31
_MAX_INLINED = 200_000
"""Limit on nodes that function calls may add to a model: chains of functions that call the previous one twice double it
each time."""
_INLINED_PER_NODE, _FEW_INLINED = 100, 5_000
"""Nodes allowed per node of the file, plus a few: import time is proportional to nodes, and so to the file."""


@dataclass
class LoadedModel:
    """A valid model: `initializers` are read on first access; `nodes` are sorted topologically."""

    proto: onnx.ModelProto
    opsets: dict[str, int]
    reader: TensorReader
    nodes: list[onnx.NodeProto]
    initializers: dict[str, Constant]
    functions: dict[FunctionKey, onnx.FunctionProto] = field(default_factory=dict)


def load_model(source: ModelSource) -> LoadedModel:
    """Read and validate a model.

    Raises InvalidModelError if it is broken, StorageError if the file cannot be read.
    """
    proto, folder = _read(source)
    if not proto.HasField("graph"):
        where = f"{source}: " if isinstance(source, str | Path) else ""
        raise InvalidModelError(f"{where}the model holds no graph: the file is empty or not an ONNX model", FORMATS)
    reader = TensorReader(folder, owned=not isinstance(source, onnx.ModelProto))
    opsets = check_opsets(proto.opset_import, "the model")
    functions = _functions(proto)
    check_graph(proto.graph, opsets, frozenset(functions))
    _check_calls(proto.graph, functions)
    return LoadedModel(
        proto=proto,
        opsets=opsets,
        reader=reader,
        nodes=ordered_nodes(proto.graph),
        initializers=graph_initializers(proto.graph, reader),
        functions=functions,
    )


def graph_initializers(graph: onnx.GraphProto, reader: TensorReader) -> dict[str, Constant]:
    """Return the validated constants of a graph, by name. Raises InvalidModelError."""
    constants = {t.name: reader.constant(t, f"initializer {t.name!r}") for t in graph.initializer}
    for sparse in graph.sparse_initializer:
        name = sparse.values.name
        constants[name] = Constant(dense_from_sparse(sparse, f"initializer {name!r}", reader))
    return constants


def _read(source: ModelSource) -> tuple[onnx.ModelProto, Path | None]:
    if isinstance(source, onnx.ModelProto):
        return source, None
    if isinstance(source, (bytes, bytearray, memoryview)):
        check_is_model_data(bytes(source))
        return _parse(bytes(source), "the given bytes"), None
    path = Path(source)
    check_exists(path)
    if path.is_dir():
        check_folder(path)
    check_is_model_file(path)
    try:
        if path.exists() and not path.is_file():  # a device or a pipe, which may be endless
            raise StorageError(f"the model {path} is not a file")
        if path.is_file() and path.stat().st_size >= _MAX_PROTOBUF:
            raise InvalidModelError(
                f"{path} is larger than 2 GB, which a protobuf file cannot be",
                "save the model with its weights as external data",
            )
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot read the model {path}: {error}") from error
    return _parse(data, str(path)), path.resolve().parent


def _parse(data: bytes, where: str) -> onnx.ModelProto:
    try:
        return onnx.ModelProto.FromString(data)
    except (DecodeError, ValueError, RecursionError) as error:
        raise InvalidModelError(f"{where} is not an ONNX model, or it is truncated: {error}", FORMATS) from error


def _functions(proto: onnx.ModelProto) -> dict[FunctionKey, onnx.FunctionProto]:
    functions: dict[FunctionKey, onnx.FunctionProto] = {}
    for function in proto.functions:
        check_text([function.name, function.domain, *function.input, *function.output], "a function")
        key = (normalized_domain(function.domain), function.name)
        if key in functions:
            raise InvalidModelError(f"the function {function.domain}:{function.name} is defined twice")
        functions[key] = function
    for function in proto.functions:
        _check_function(function, frozenset(functions))
    _check_no_recursion(functions)
    return functions


def _check_function(function: onnx.FunctionProto, functions: frozenset[FunctionKey]) -> None:
    where = f"function {function.name!r}"
    opsets = check_opsets(function.opset_import, where)
    graph = function_graph(function)
    check_graph(graph, opsets, functions, where=where)


def function_graph(function: onnx.FunctionProto) -> onnx.GraphProto:
    """Return a function's body as a graph with untyped inputs and outputs."""
    graph = onnx.GraphProto(name=function.name)
    graph.node.extend(function.node)
    graph.input.extend(onnx.ValueInfoProto(name=name) for name in function.input)
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in function.output)
    return graph


def _check_no_recursion(functions: dict[FunctionKey, onnx.FunctionProto]) -> None:
    done: set[FunctionKey] = set()

    def visit(key: FunctionKey, stack: tuple[FunctionKey, ...]) -> None:
        if key in stack or len(stack) > 100:
            raise InvalidModelError(f"the function {key[0]}:{key[1]} calls itself, directly or through others")
        if key in done:
            return
        for node in all_nodes(functions[key].node):
            called = (normalized_domain(node.domain), node.op_type)
            if called in functions:
                visit(called, (*stack, key))
        done.add(key)

    for key in functions:
        visit(key, ())


def _check_calls(graph: onnx.GraphProto, functions: dict[FunctionKey, onnx.FunctionProto]) -> None:
    """Raise InvalidModelError if inlining all functions, which are not recursive, gives too many nodes."""
    sizes: dict[FunctionKey, int] = {}

    def added(nodes: object) -> int:
        keys = [(normalized_domain(node.domain), node.op_type) for node in all_nodes(nodes)]
        return sum(size(key) for key in keys if key in functions)

    def size(key: FunctionKey) -> int:
        if key not in sizes:
            body = functions[key].node
            sizes[key] = len(all_nodes(body)) + added(body)
        return sizes[key]

    total = added(graph.node)
    written = len(all_nodes(graph.node)) + sum(len(all_nodes(function.node)) for function in functions.values())
    most = min(_MAX_INLINED, _FEW_INLINED + _INLINED_PER_NODE * written)
    if total > most:
        raise InvalidModelError(
            f"the functions that the model calls are {total} nodes in place of their calls; of a model of {written}"
            f" nodes, at most {most} are imported",
            "functions that call others several times multiply: export the model without functions",
        )


def all_nodes(nodes: object) -> list[onnx.NodeProto]:
    """Return nodes and those of their subgraphs, at any depth."""
    result: list[onnx.NodeProto] = []
    for node in nodes:  # type: ignore[attr-defined]
        result.append(node)
        for attribute in node.attribute:
            graphs = [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else list(attribute.graphs)
            for graph in graphs:
                result.extend(all_nodes(graph.node))
    return result


MAX_ELEMENTS = 2**40


class TensorReader:
    """Reads the tensors of a model in `folder` (None for a model in memory, which has no external files).

    With `owned`, the bytes of a large inline tensor are removed from the model after they are read.
    """

    def __init__(self, folder: Path | None, owned: bool) -> None:
        self._folder = folder
        self._owned = owned

    def keep_data(self) -> None:
        """Stop removing bytes: tensors may be read again, since subgraphs can be imported repeatedly."""
        self._owned = False

    def constant(self, tensor: TensorProto, where: str) -> Constant:
        """Return a constant whose array is read later, after checking its header, its size and its file.

        Raises InvalidModelError.
        """
        dtype = check_header(tensor, where)
        shape = tuple(tensor.dims)
        if tensor.data_location == TensorProto.EXTERNAL:
            path, offset, length = self._external_range(tensor, where)
            expected = _stored_bytes(dtype, shape)
            if length != expected:
                raise InvalidModelError(f"{where}: {length} bytes of external data, but shape and type need {expected}")
            return Constant.lazy(lambda: _read_external(path, offset, shape, dtype), shape, dtype)
        if tensor.HasField("raw_data"):
            stored, expected = len(tensor.raw_data), _stored_bytes(dtype, shape)
            if dtype == "string" or stored != expected:
                raise InvalidModelError(f"{where}: {stored} bytes of data, but shape and type need {expected}")
        return Constant.lazy(lambda: self._inline_array(tensor, where), shape, dtype)

    def _inline_array(self, tensor: TensorProto, where: str) -> np.ndarray:
        try:
            array = numpy_helper.to_array(tensor)
        except Exception as error:  # onnx raises many exception types for malformed tensors
            raise InvalidModelError(f"{where}: its data cannot be read: {error}") from error
        if array.shape != tuple(tensor.dims):
            raise InvalidModelError(f"{where}: its data have shape {array.shape}, not {tuple(tensor.dims)}")
        if self._owned and tensor.HasField("raw_data") and array.nbytes > 4096:
            tensor.ClearField("raw_data")
        return array

    def _external_range(self, tensor: TensorProto, where: str) -> tuple[Path, int, int]:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        path = self._external_file(entries.get("location", ""), where)
        try:
            offset = int(entries.get("offset", "0"))
            length = int(entries["length"]) if "length" in entries else path.stat().st_size - offset
        except ValueError as error:
            raise InvalidModelError(f"{where}: offset or length of its external data is not a number") from error
        if offset < 0 or length < 0 or offset + length > path.stat().st_size:
            raise InvalidModelError(f"{where}: its external data lie outside {path.name!r} (truncated file?)")
        return path, offset, length

    def _external_file(self, location: str, where: str) -> Path:
        if self._folder is None:
            raise InvalidModelError(
                f"{where} is stored in the external file {location!r}, but the model was given in memory",
                "pass the path of the model file, or load the external data into the model first",
            )
        folder = self._folder.resolve()
        if not location or "\0" in location or os.path.isabs(location) or "\\" in location:
            raise InvalidModelError(f"{where}: the external file {location!r} is not a relative path")
        path = (folder / location).resolve()
        if not path.is_relative_to(folder):
            raise InvalidModelError(f"{where}: the external file {location!r} reaches outside the model's folder")
        if not path.is_file():
            raise InvalidModelError(
                f"{where}: the external file {location!r} is missing", f"put it next to the model, in {folder}"
            )
        return path


def check_header(tensor: TensorProto, where: str) -> str:
    """Return the dtype name of a tensor with valid type and dims. Raises InvalidModelError."""
    dtype = dtypes.dtype_name(tensor.data_type)
    if dtype is None:
        raise InvalidModelError(f"{where} has the unknown element type {tensor.data_type}")
    elements = 1
    for dim in tensor.dims:
        if dim < 0:
            raise InvalidModelError(f"{where} has a negative dimension: {list(tensor.dims)}")
        elements *= dim
    if elements > MAX_ELEMENTS:
        raise InvalidModelError(f"{where} has an absurd shape: {list(tensor.dims)}")
    if tensor.data_location != TensorProto.EXTERNAL and not tensor.HasField("raw_data"):
        _check_typed_data(tensor, dtype, elements, where)
    return dtype


def _check_typed_data(tensor: TensorProto, dtype: str, elements: int, where: str) -> None:
    """Check the number of values in float_data, int32_data and so on."""
    expected = elements
    if dtype.startswith("complex"):
        expected = 2 * elements
    elif dtype not in ("string", "bool") and dtypes.bits(dtype) < 8:
        expected = -(-elements * dtypes.bits(dtype) // 8)
    fields = (tensor.float_data, tensor.int32_data, tensor.string_data, tensor.int64_data)
    count = max(len(data) for data in (*fields, tensor.double_data, tensor.uint64_data))
    if count != expected:
        raise InvalidModelError(f"{where} holds {count} values, but its shape {list(tensor.dims)} needs {expected}")


def _stored_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    elements = int(np.prod(shape, dtype=np.int64))
    if dtype == "bool":
        return elements
    if dtype == "string":
        return -1
    if dtype.startswith("complex"):
        return elements * numpy_bytes(dtype)
    return -(-elements * dtypes.bits(dtype) // 8)


def numpy_bytes(dtype: str) -> int:
    """Return the bytes of one value in numpy."""
    return dtypes.numpy_dtype(dtype).itemsize


def _read_external(path: Path, offset: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Memory-map the file: nothing is copied until the values are used."""
    count = _stored_bytes(dtype, shape)
    if count == 0:
        return np.zeros(shape, dtypes.numpy_dtype(dtype))
    data = np.memmap(path, np.uint8, "r", offset, (count,))
    if dtype != "bool" and not dtype.startswith("complex") and dtypes.bits(dtype) < 8:
        tensor = TensorProto(data_type=dtypes.NUMBERS[dtype], dims=shape, raw_data=data.tobytes())
        return numpy_helper.to_array(tensor)
    array = np.asarray(data).view(
        dtypes.numpy_dtype(dtype).newbyteorder("<") if numpy_bytes(dtype) > 1 else dtypes.numpy_dtype(dtype)
    )
    return array.reshape(shape)


def dense_from_sparse(sparse: onnx.SparseTensorProto, where: str, reader: TensorReader) -> np.ndarray:
    """Convert a sparse initializer to a dense array. Raises InvalidModelError."""
    values = reader.constant(sparse.values, where).array
    indices = reader.constant(sparse.indices, where).array
    dims = tuple(sparse.dims)
    if any(d < 0 for d in dims) or np.prod(dims, dtype=float) > MAX_ELEMENTS:
        raise InvalidModelError(f"{where} has an absurd shape: {list(dims)}")
    dense = np.zeros(dims, values.dtype)
    flat = np.ravel_multi_index(tuple(indices.T), dims) if indices.ndim == 2 else indices
    if flat.shape != values.shape or (flat.size and (flat.min() < 0 or flat.max() >= dense.size)):
        raise InvalidModelError(f"{where}: its sparse indices do not fit its shape")
    dense.reshape(-1)[flat] = values
    return dense
