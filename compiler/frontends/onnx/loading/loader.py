"""From a path, bytes or a ModelProto to a model whose structure is known to be sound.

Everything after this may rely on: opset versions exist, every name is produced exactly once and before it is used,
every constant's size fits its shape, every node has the inputs and attributes its operator needs, functions do not
recurse. `onnx.checker` is not used: it crashes on some broken files and refuses some sound ones.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from compiler.errors import InvalidModelError, StorageError
from compiler.frontends.file_types import FORMATS, check_exists, check_folder, check_is_model_data, check_is_model_file
from compiler.frontends.onnx.loading.external_data import TensorReader, dense_from_sparse
from compiler.frontends.onnx.structure import check_graph, check_opsets, check_text, normalized_domain, ordered_nodes
from compiler.frontends.onnx.values import Constant

ModelSource = str | os.PathLike[str] | bytes | onnx.ModelProto
FunctionKey = tuple[str, str]

_MAXIMUM_PROTOBUF = 2**31
_MAXIMUM_INLINED = 200_000
"""Nodes that calls of functions may add to a model: functions that call the one before twice double it each time."""
_INLINED_PER_NODE, _FEW_INLINED = 100, 5_000
"""So many for each node of the file, and a few: importing takes time in proportion to nodes, and so to the file."""


@dataclass
class LoadedModel:
    """A sound model: `initializers` are read when first needed; `nodes` are sorted topologically."""

    proto: onnx.ModelProto
    opsets: dict[str, int]
    reader: TensorReader
    nodes: list[onnx.NodeProto]
    initializers: dict[str, Constant]
    functions: dict[FunctionKey, onnx.FunctionProto] = field(default_factory=dict)


def load_model(source: ModelSource) -> LoadedModel:
    """Read and check a model.

    Raises InvalidModelError when it is broken, StorageError when the file cannot be read.
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
    """The constants of a graph by name, checked. Raises InvalidModelError."""
    found = {t.name: reader.constant(t, f"initializer {t.name!r}") for t in graph.initializer}
    for sparse in graph.sparse_initializer:
        name = sparse.values.name
        found[name] = Constant(dense_from_sparse(sparse, f"initializer {name!r}", reader))
    return found


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
        if path.exists() and not path.is_file():  # a device or a pipe, which may never end
            raise StorageError(f"the model {path} is not a file")
        if path.is_file() and path.stat().st_size >= _MAXIMUM_PROTOBUF:
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
    """A function's body as a graph with untyped inputs and outputs."""
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
    """Raises InvalidModelError where functions in place of their calls are too many nodes. They do not recurse."""
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
    most = min(_MAXIMUM_INLINED, _FEW_INLINED + _INLINED_PER_NODE * written)
    if total > most:
        raise InvalidModelError(
            f"the functions that the model calls are {total} nodes in place of their calls; of a model of {written}"
            f" nodes, at most {most} are imported",
            "functions that call others several times multiply: export the model without functions",
        )


def all_nodes(nodes: object) -> list[onnx.NodeProto]:
    """Nodes and those of their subgraphs, at any depth."""
    found: list[onnx.NodeProto] = []
    for node in nodes:  # type: ignore[attr-defined]
        found.append(node)
        for attribute in node.attribute:
            graphs = [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else list(attribute.graphs)
            for graph in graphs:
                found.extend(all_nodes(graph.node))
    return found
