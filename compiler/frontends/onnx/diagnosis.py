"""Finds out whether the model is at fault: types are checked before a node is converted, the rest when a conversion
fails."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx
import onnx.helper
import onnx.shape_inference

from compiler.frontends.onnx import dtypes
from compiler.frontends.onnx.evaluation.reference import reference_outputs
from compiler.frontends.onnx.expansion import type_of
from compiler.frontends.onnx.structure import normalized_domain, schema_of
from compiler.frontends.onnx.values import Constant, Runtime, Symbolic, Value

_MAXIMUM_TRIAL_ELEMENTS = 2**14
_TYPE_WORDS = {"float32": "float", "float64": "double", "float4_e2m1fn": "float4e2m1", "float8_e8m0fnu": "float8e8m0"}


def type_error(node: onnx.NodeProto, inputs: Sequence[Value | None], opsets: dict[str, int]) -> str | None:
    """Description of element types that the operator's schema does not allow, or None."""
    domain = normalized_domain(node.domain)
    schema = schema_of(node.op_type, opsets.get(domain, 1), domain)
    if schema is None or not schema.inputs:
        return None
    bound: dict[str, str] = {}
    constraints = {c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints}
    for index, value in enumerate(inputs):
        if not isinstance(value, (Constant, Symbolic, Runtime)):
            continue
        formal = schema.inputs[min(index, len(schema.inputs) - 1)]
        found = f"tensor({_TYPE_WORDS.get(value.dtype, value.dtype).replace('_', '')})"
        allowed = constraints.get(formal.type_str, {formal.type_str})
        optional = {f"optional({found})", f"seq({found})"}
        if value.dtype == "bfloat16" and "tensor(float16)" in allowed:
            found = "tensor(float16)"  # PyTorch writes whole nets in bfloat16 in opsets that have it in few operators
        if found not in allowed and not optional & allowed:
            return f"input {index} ({formal.name}) is of type {value.dtype}, which the operator does not take"
        if formal.is_homogeneous and bound.setdefault(formal.type_str, value.dtype) != value.dtype:
            return f"inputs of one type are expected, but some are {bound[formal.type_str]} and some {value.dtype}"
    return None


def moved_dtype(
    node: onnx.NodeProto, inputs: Sequence[Value | None], opsets: dict[str, int], output: int
) -> str | None:
    """The type of an output that has the type of an input which TVM carries in another one; None otherwise."""
    carried = {
        index: value.dtype
        for index, value in enumerate(inputs)
        if isinstance(value, (Constant, Symbolic, Runtime)) and dtypes.carrier(value.dtype) != value.dtype
    }
    domain = normalized_domain(node.domain)
    schema = schema_of(node.op_type, opsets.get(domain, 1), domain) if carried else None
    if schema is None or not schema.inputs or not schema.outputs:
        return None
    wanted = schema.outputs[min(output, len(schema.outputs) - 1)].type_str
    for index, dtype in carried.items():
        if schema.inputs[min(index, len(schema.inputs) - 1)].type_str == wanted:
            return dtype
    return None


def why_invalid(node: onnx.NodeProto, inputs: Sequence[Value | None], opsets: dict[str, int]) -> str | None:
    """Why a node cannot be computed on inputs of these types and shapes, or None when nothing is found."""
    return _inference_error(node, inputs, opsets) or _reference_error(node, inputs, opsets)


def _inference_error(node: onnx.NodeProto, inputs: Sequence[Value | None], opsets: dict[str, int]) -> str | None:
    """Error of onnx's own type and shape inference, or None."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    del copy.input[:]
    copy.input.extend("" if value is None else f"input_{index}" for index, value in enumerate(inputs))
    infos, initializers = [], []
    for index, value in enumerate(inputs):
        if value is not None:
            infos.append(onnx.helper.make_value_info(f"input_{index}", type_of(value)))
        if isinstance(value, Constant) and value.dtype in ("int64", "int32") and value.size < 1024:
            initializers.append(onnx.numpy_helper.from_array(value.array, f"input_{index}"))
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
    graph = onnx.helper.make_graph([copy], "diagnosis", infos, outputs, initializers)
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    model = onnx.helper.make_model(graph, opset_imports=imports)
    try:
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except Exception as error:  # InferenceError and others
        return " ".join(str(error).split())
    return None


def _reference_error(node: onnx.NodeProto, inputs: Sequence[Value | None], opsets: dict[str, int]) -> str | None:
    """The error of onnx's reference implementation for inputs of these shapes; only small ones are tried."""
    arrays: list[np.ndarray | None] = []
    for value in inputs:
        if value is None:
            arrays.append(None)
            continue
        shape = value.shape if isinstance(value, (Constant, Runtime)) else None
        if (
            shape is None
            or not all(isinstance(size, int) for size in shape)
            or math.prod(shape) > _MAXIMUM_TRIAL_ELEMENTS
        ):
            return None
        known = value.array if isinstance(value, Constant) else None
        dtype = dtypes.numpy_dtype(value.dtype if isinstance(value, (Constant, Runtime)) else "float32")
        arrays.append(known if known is not None else np.ones(shape, dtype))
    domain = normalized_domain(node.domain)
    try:
        reference_outputs(node, arrays, opsets.get(domain, 1), opsets)
    except (NotImplementedError, RuntimeError):
        return None
    except Exception as error:  # numpy's complaints about shapes and values
        return " ".join(f"{type(error).__name__}: {error}".split())[:400]
    return None
