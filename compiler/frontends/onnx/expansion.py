"""Functions in place of nodes: references to the caller's attributes resolved, bodies taken from onnx's own schemas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
import onnx.helper

from compiler.frontends.onnx import dtypes
from compiler.frontends.onnx.structure import normalized_domain, schema_of, subgraphs
from compiler.frontends.onnx.values import (
    Constant,
    OptionalValue,
    Runtime,
    SequenceValue,
    StackedSequence,
    Symbolic,
    Value,
)


def resolve_references(function: onnx.FunctionProto, call: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The function's nodes with references to its attributes replaced by the caller's values, or by their defaults."""
    given = {attribute.name: attribute for attribute in function.attribute_proto}
    given.update({attribute.name: attribute for attribute in call.attribute})
    nodes = []
    for node in function.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        _resolve(copy, given)
        if not copy.name:
            copy.name = "/".join(filter(None, [call.name or next(iter(call.output), ""), next(iter(copy.output), "")]))
        nodes.append(copy)
    return nodes


def _resolve(node: onnx.NodeProto, given: dict[str, onnx.AttributeProto]) -> None:
    resolved = []
    for attribute in node.attribute:
        if attribute.ref_attr_name:
            source = given.get(attribute.ref_attr_name)
            if source is None:
                continue
            copy = onnx.AttributeProto()
            copy.CopyFrom(source)
            copy.name = attribute.name
            resolved.append(copy)
        else:
            resolved.append(attribute)
    kept = [onnx.AttributeProto.FromString(a.SerializeToString()) for a in resolved]
    del node.attribute[:]
    node.attribute.extend(kept)
    for graph in subgraphs(node):
        for inner in graph.node:
            _resolve(inner, given)


def schema_function(
    node: onnx.NodeProto, inputs: Sequence[Value | None], opsets: dict[str, int]
) -> onnx.FunctionProto | None:
    """The body by which onnx itself defines the operator, or None when it has none for these inputs."""
    domain = normalized_domain(node.domain)
    opset = opsets.get(domain, 1)
    schema = schema_of(node.op_type, opset, domain)
    if schema is None:
        return None
    function = _body(schema, node, inputs, opsets)
    if function is not None:
        given = {attribute.name for attribute in function.attribute_proto}
        defaults = [
            a.default_value for name, a in schema.attributes.items() if name not in given and a.default_value.name
        ]
        function.attribute_proto.extend(defaults)
    return function


def _body(
    schema: Any, node: onnx.NodeProto, inputs: Sequence[Value | None], opsets: dict[str, int]
) -> onnx.FunctionProto | None:
    if schema.has_function:
        fitting = [v for v in schema.function_opset_versions if v <= opsets.get("", 1)]
        if fitting:
            body = schema.get_function_with_opset_version(max(fitting))
            return onnx.FunctionProto.FromString(body)
    if schema.has_context_dependent_function:
        types = [type_of(value).SerializeToString() for value in inputs]
        fitting = [v for v in schema.context_dependent_function_opset_versions if v <= opsets.get("", 1)]
        for version in sorted(fitting, reverse=True):
            body = schema.get_context_dependent_function_with_opset_version(version, node.SerializeToString(), types)
            if body:
                return onnx.FunctionProto.FromString(body)
    return None


def type_of(value: Value | None) -> onnx.TypeProto:
    """A value's type as onnx writes it; empty for a missing one."""
    if isinstance(value, (Constant, Symbolic, Runtime)):
        shape = [d if isinstance(d, int) else str(d) for d in value.shape]
        return onnx.helper.make_tensor_type_proto(dtypes.NUMBERS[value.dtype], shape)
    if isinstance(value, SequenceValue):
        if value.values:
            return onnx.helper.make_sequence_type_proto(type_of(value.values[0]))
        return onnx.helper.make_sequence_type_proto(
            onnx.helper.make_tensor_type_proto(dtypes.NUMBERS[value.dtype or "float32"], None)
        )
    if isinstance(value, StackedSequence):
        shape = [d if isinstance(d, int) else str(d) for d in value.tensor.shape[1:]]
        element = onnx.helper.make_tensor_type_proto(dtypes.NUMBERS[value.tensor.dtype], shape)
        return onnx.helper.make_sequence_type_proto(element)
    if isinstance(value, OptionalValue) and value.value is not None:
        return onnx.helper.make_optional_type_proto(type_of(value.value))
    return onnx.TypeProto()
