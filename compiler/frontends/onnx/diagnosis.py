"""When a conversion fails: is the model at fault?"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnx.helper
import onnx.shape_inference

from compiler.frontends.onnx.expansion import type_of
from compiler.frontends.onnx.values import Constant, Value


def why_invalid(node: onnx.NodeProto, inputs: Sequence[Value | None], opsets: dict[str, int]) -> str | None:
    """What onnx's own type and shape inference finds wrong with a node on inputs of these types, or None."""
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
