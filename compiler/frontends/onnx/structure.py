"""Structural checks of graphs and nodes; all raise InvalidModelError."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import onnx
import onnx.defs
from onnx import AttributeProto

from compiler.errors import InvalidModelError
from compiler.frontends.onnx import dtypes
from compiler.frontends.onnx.node_names import shown_name

if TYPE_CHECKING:
    from compiler.frontends.onnx.context import NodeContext

    Converter = Callable[[NodeContext], Any]

MAX_DIMENSION = 2**40
RANDOM_OPERATORS = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)
_MAX_DEPTH = 32
_NAMELESS = frozenset({"", "?", "-1", "None"})
_EXTENTS = frozenset(
    {
        "kernel_shape",
        "strides",
        "dilations",
        "pads",
        "output_padding",
        "output_shape",
        "group",
        "blocksize",
        "num_groups",
    }
)
_ATTRIBUTE_FIELDS = {
    AttributeProto.FLOAT: "f",
    AttributeProto.INT: "i",
    AttributeProto.STRING: "s",
    AttributeProto.TENSOR: "t",
    AttributeProto.GRAPH: "g",
    AttributeProto.SPARSE_TENSOR: "sparse_tensor",
    AttributeProto.TYPE_PROTO: "tp",
}


def check_opsets(imports: Iterable[onnx.OperatorSetIdProto], where: str) -> dict[str, int]:
    """Return the opset version by domain; the default domain's must exist."""
    opsets: dict[str, int] = {}
    for item in imports:
        check_text([item.domain], where)
        domain = normalized_domain(item.domain)
        if item.version < 1 or opsets.get(domain, item.version) != item.version:
            raise InvalidModelError(f"{where} imports the opset {item.domain!r} with a bad version {item.version}")
        opsets[domain] = item.version
    newest = onnx.defs.onnx_opset_version()
    if opsets.get("", 1) > newest:
        raise InvalidModelError(
            f"{where} uses opset {opsets['']}; the newest known one is {newest}", "install a newer onnx package"
        )
    return opsets


def check_graph(
    graph: onnx.GraphProto,
    opsets: dict[str, int],
    functions: frozenset[tuple[str, str]],
    outer: frozenset[str] = frozenset(),
    depth: int = 0,
    where: str = "the graph",
) -> None:
    """Check names, order, types and nodes of a graph and its subgraphs; `outer` are the names visible from outside."""
    if depth > _MAX_DEPTH:
        raise InvalidModelError(f"{where}: subgraphs are nested more than {_MAX_DEPTH} deep")
    check_text([value.name for value in [*graph.input, *graph.output]], where)
    known = _declared_names(graph, where)
    for value in [*graph.input, *graph.output]:
        check_value_type(value, where)
    for node in graph.node:
        attributes = [text for a in node.attribute for text in (a.name, a.ref_attr_name)]
        check_text([node.name, node.op_type, node.domain, *node.input, *node.output, *attributes], where)
        for name in filter(None, node.output):
            if name in known:
                raise InvalidModelError(f"{where}: the value {name!r} is defined twice (again by {describe(node)})")
            known.add(name)
    visible = outer | known
    for node in graph.node:
        for name in filter(None, node.input):
            if name not in visible:
                raise InvalidModelError(f"{where}: {describe(node)} uses {name!r}, which nothing defines")
        _check_node(node, opsets, functions)
        for subgraph in subgraphs(node):
            check_graph(subgraph, opsets, functions, visible, depth + 1, f"the subgraph of {describe(node)}")
    for value in graph.output:
        if value.name not in visible:
            raise InvalidModelError(f"{where}: nothing defines the output {value.name!r}")
    ordered_nodes(graph)


def check_text(names: Iterable[object], where: str) -> None:
    """Check that names are text: strings that are not valid UTF-8 are read as bytes."""
    for name in names:
        if not isinstance(name, str):
            raise InvalidModelError(f"{where} holds a name that is not text: {name!r}")


def _declared_names(graph: onnx.GraphProto, where: str) -> set[str]:
    inputs = [value.name for value in graph.input]
    initializers = [t.name for t in graph.initializer] + [t.values.name for t in graph.sparse_initializer]
    check_text(initializers, where)
    for kind, names in (("input", inputs), ("initializer", initializers)):
        for name in names:
            if not name:
                raise InvalidModelError(f"{where} has an {kind} without a name")
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise InvalidModelError(f"{where} has the {kind} {twice!r} twice")
    return {*inputs, *initializers}


def declared_size(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    """Return a declared size: a number, a name that represents one size everywhere, or None if unspecified.

    Some exporters write -1, "?" or "None" for all unknown sizes, even if different.
    """
    if dim.WhichOneof("value") == "dim_value":
        return None if dim.dim_value == -1 else int(dim.dim_value)
    return None if dim.dim_param in _NAMELESS else str(dim.dim_param)


def check_value_type(value: onnx.ValueInfoProto, where: str) -> None:
    """Check the element type and dimensions declared by a graph input or output, if any."""
    if value.type.WhichOneof("value") != "tensor_type":
        return
    tensor = value.type.tensor_type
    check_text([d.dim_param for d in tensor.shape.dim], where)
    if tensor.elem_type and dtypes.dtype_name(tensor.elem_type) is None:
        raise InvalidModelError(f"{where}: {value.name!r} has the unknown element type {tensor.elem_type}")
    dims = [size for size in map(declared_size, tensor.shape.dim) if isinstance(size, int)]
    if any(d < 0 or d > MAX_DIMENSION for d in dims) or math.prod(d for d in dims if d) > MAX_DIMENSION:
        raise InvalidModelError(f"{where}: {value.name!r} has an absurd shape: {dims}")


def ordered_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the nodes in topological order, stable; a graph may be unsorted, but not cyclic."""
    producer = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    needs = [{producer[n] for n in used_names(node) if n in producer} for node in graph.node]
    if all(index > max(need, default=-1) for index, need in enumerate(needs)):
        return list(graph.node)
    users: list[list[int]] = [[] for _ in needs]
    for index, need in enumerate(needs):
        for source in need:
            users[source].append(index)
    ready = sorted((i for i, need in enumerate(needs) if not need), reverse=True)
    order: list[int] = []
    while ready:
        index = ready.pop()
        order.append(index)
        for user in users[index]:
            needs[user].discard(index)
            if not needs[user]:
                ready.append(user)
    if len(order) != len(needs):
        stuck = next(i for i, need in enumerate(needs) if need)
        raise InvalidModelError(f"the graph has a cycle through {describe(graph.node[stuck])}")
    return [graph.node[i] for i in order]


def used_names(node: onnx.NodeProto) -> set[str]:
    """Return the names a node reads, including those its subgraphs capture."""
    names = set(filter(None, node.input))
    for subgraph in subgraphs(node):
        names |= captured_names(subgraph)
    return names


def captured_names(graph: onnx.GraphProto) -> set[str]:
    """Return the names a graph captures from enclosing scopes."""
    defined = {v.name for v in graph.input} | {t.name for t in graph.initializer}
    defined |= {t.values.name for t in graph.sparse_initializer}
    used = {v.name for v in graph.output}
    for node in graph.node:
        defined.update(node.output)
        used |= used_names(node)
    return used - defined


def live_nodes(nodes: Sequence[onnx.NodeProto], outputs: Iterable[str]) -> list[onnx.NodeProto]:
    """Return the nodes, given in topological order, that some of the outputs depend on."""
    needed = set(outputs)
    live: list[onnx.NodeProto] = []
    for node in reversed(nodes):
        if needed.intersection(filter(None, node.output)):
            live.append(node)
            needed |= used_names(node)
    return live[::-1]


def subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """Return the graphs in a node's attributes."""
    graphs: list[onnx.GraphProto] = []
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            graphs.append(attribute.g)
        graphs.extend(attribute.graphs)
    return graphs


def all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Yield every node of the graph, of subgraphs and of functions."""
    waiting = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    while waiting:
        node = waiting.pop()
        yield node
        waiting.extend(inner for graph in subgraphs(node) for inner in graph.node)


def describe(node: onnx.NodeProto) -> str:
    """Describe a node in a message: its operator and its name for users."""
    return f"{node.op_type} node {shown_name(node)!r}"


@cache
def schema_of(operator: str, opset: int, domain: str) -> Any:
    """Return the operator's schema in that opset version, or None if onnx does not know it."""
    try:
        return onnx.defs.get_schema(operator, opset, domain)
    except onnx.defs.SchemaError:
        return None


def _check_node(node: onnx.NodeProto, opsets: dict[str, int], functions: frozenset[tuple[str, str]]) -> None:
    if not node.op_type:
        raise InvalidModelError(f"a node ({node.name!r}) has no operator")
    _check_attributes(node)
    _check_extents(node)
    domain = normalized_domain(node.domain)
    if (domain, node.op_type) in functions:
        return
    if domain not in opsets:
        if domain == "":
            raise InvalidModelError(f"{describe(node)}: the model does not say which opset it uses")
        return
    schema = schema_of(node.op_type, opsets[domain], domain)
    if schema is None:
        return
    if not schema.min_input <= len(node.input) <= schema.max_input:
        raise InvalidModelError(
            f"{describe(node)} has {len(node.input)} inputs; {schema.min_input} to {schema.max_input} are allowed"
        )
    if not schema.min_output <= len(node.output) <= schema.max_output:
        raise InvalidModelError(
            f"{describe(node)} has {len(node.output)} outputs; at most {schema.max_output} are allowed"
        )
    for index in range(min(schema.min_input, len(schema.inputs))):
        required = schema.inputs[index].option != onnx.defs.OpSchema.FormalParameterOption.Optional
        # Opset 11 requires all inputs of Resize, but exporters omit the unused ones.
        if required and not node.input[index] and (node.op_type, index > 0) != ("Resize", True):
            raise InvalidModelError(f"{describe(node)} lacks its input {schema.inputs[index].name!r}")
    _check_against_schema(node, schema)


def _check_attributes(node: onnx.NodeProto) -> None:
    names = [attribute.name for attribute in node.attribute]
    if len(set(names)) != len(names):
        raise InvalidModelError(f"{describe(node)} has an attribute twice")
    for attribute in node.attribute:
        field = _ATTRIBUTE_FIELDS.get(attribute.type)
        is_message = field in ("t", "g", "sparse_tensor", "tp")
        if field and is_message and not attribute.ref_attr_name and not attribute.HasField(field):
            raise InvalidModelError(f"{describe(node)}: the attribute {attribute.name!r} has no value")


def _check_extents(node: onnx.NodeProto) -> None:
    """Check that attributes that are sizes are possible ones; in others the largest integers have a meaning."""
    for attribute in node.attribute:
        if attribute.name in _EXTENTS and any(abs(v) >= 2**31 for v in (attribute.i, *attribute.ints)):
            raise InvalidModelError(f"{describe(node)}: the attribute {attribute.name!r} has an absurd value")


def _check_against_schema(node: onnx.NodeProto, schema: Any) -> None:
    attributes = {attribute.name: attribute for attribute in node.attribute}
    for name, declared in schema.attributes.items():
        attribute = attributes.get(name)
        if attribute is None:
            if declared.required:
                raise InvalidModelError(f"{describe(node)} lacks the attribute {name!r}")
        elif int(attribute.type) != declared.type.value:
            raise InvalidModelError(
                f"{describe(node)}: the attribute {name!r} is of type {attribute.type}, not {declared.type.name}"
            )


def normalized_domain(domain: str) -> str:
    """Return the domain; `ai.onnx` is another name of the default domain."""
    return "" if domain == "ai.onnx" else domain
