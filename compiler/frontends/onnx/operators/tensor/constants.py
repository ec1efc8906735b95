"""Constant and Identity."""

from __future__ import annotations

import numpy as np

from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.loading.external_data import dense_from_sparse
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.values import Constant, Value

_SCALARS = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}


@converter("Constant")
def constant(context: NodeContext) -> Value:
    """Every form of the value: a tensor, a sparse tensor, numbers or strings."""
    reader = context.importer.model.reader
    given = [attribute.name for attribute in context.node.attribute]
    if len(given) != 1:
        context.invalid(f"it must have exactly one value, not {given}")
    (name,) = given
    if name == "value":
        return reader.constant(context.required_attribute(name), f"the value of Constant {context.name!r}")
    if name == "sparse_value":
        sparse = context.required_attribute(name)
        return Constant(dense_from_sparse(sparse, f"the value of Constant {context.name!r}", reader))
    value = context.required_attribute(name)
    if name in ("value_string", "value_strings"):
        return Constant(np.array(value, object), "string")
    if name not in _SCALARS:
        context.invalid(f"it has the unknown attribute {name!r}")
    return Constant(np.array(value, _SCALARS[name]))


@converter("Identity")
def identity(context: NodeContext) -> Value:
    """The same value, whatever its kind."""
    return context.value(0)
