"""Runs an ONNX model and, as the reference, ONNX Runtime or the reference evaluator of the onnx package."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from compiler.driver.compile import compile
from compiler.errors import InvalidModelError
from compiler.frontends.onnx.loading.loader import load_model
from compiler.frontends.onnx.structure import describe
from compiler.profiling.workload import complete_inputs
from compiler.support.optional import optional_module

Array = np.ndarray
Run = Callable[[Mapping[str, Array], Sequence[str]], dict[str, Array]]


class OnnxSide:
    """See `Side`. The model is compiled on construction; raises as `compile`."""

    def __init__(
        self,
        source: Any,
        reference: str,
        inputs: Mapping[str, object],
        sizes: Mapping[str, int] | None,
        options: Mapping[str, Any],
    ) -> None:
        """Create the side.

        Args:
            inputs: by name; random ones for the rest, with these `sizes` of symbolic dimensions.
            options: options of `compile`.
        """
        self._source, self._options, self.reference = source, options, reference
        self._proto = load_model(source).proto
        self._module = compile(source, **options)
        self.model = Path(source).name if isinstance(source, str | os.PathLike) else self._proto.graph.name or "model"
        given = {name: np.asarray(value) if not isinstance(value, str) else value for name, value in inputs.items()}
        self.example: dict[str, Array] = complete_inputs(self._module, given, sizes)
        constants = options.get("constants") or {}
        self._feeds = {**self.example, **{name: np.asarray(value) for name, value in constants.items()}}
        self._run = (_onnxruntime if reference == "onnxruntime" else _onnx_reference)(self._proto, source)
        self.outputs = [spec.name for spec in self._module.outputs]
        nodes = self._proto.graph.node
        self.nodes = {name: describe(node) for node in nodes for name in node.output}
        initializers = {each.name for each in self._proto.graph.initializer}
        self.operands = {
            name: [each for each in node.input if each and each not in initializers]
            for node in nodes
            for name in node.output
        }

    @cached_property
    def values(self) -> list[str]:
        return tensor_values(self._proto)

    def ours(self, names: Sequence[str]) -> dict[str, Array]:
        if list(names) == self.outputs:
            return self._module.run(self.example)
        module = compile(self._source, **self._options, outputs=list(names))
        wanted = {each.name for each in module.inputs}
        return module.run({name: array for name, array in self.example.items() if name in wanted})

    def theirs(self, names: Sequence[str]) -> dict[str, Array]:
        return self._run(self._feeds, names)


def tensor_values(proto: onnx.ModelProto) -> list[str]:
    """Values computed by nodes of the main graph that are known to be tensors, in order."""
    inferred = onnx.shape_inference.infer_shapes(proto) if proto.ByteSize() < 1 << 31 else proto
    known = {
        each.name
        for each in (*inferred.graph.value_info, *inferred.graph.output)
        if each.type.HasField("tensor_type") and each.type.tensor_type.elem_type != onnx.TensorProto.STRING
    }
    return [name for node in proto.graph.node for name in node.output if name in known]


def _onnxruntime(proto: onnx.ModelProto, source: object) -> Run:
    onnxruntime = optional_module("onnxruntime", "peers", "computes reference outputs")

    folder = Path(source).parent if isinstance(source, str | os.PathLike) else None

    def run(feeds: Mapping[str, Array], names: Sequence[str]) -> dict[str, Array]:
        settings = onnxruntime.SessionOptions()
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        settings.log_severity_level = 3
        settings.intra_op_num_threads = 1  # several threads of its ScatterND lose sums of the same row (1.32)
        if folder is not None:
            settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        try:
            session = onnxruntime.InferenceSession(
                _with_outputs(proto, names).SerializeToString(), settings, providers=["CPUExecutionProvider"]
            )
            wanted = {each.name for each in session.get_inputs()}
            results = session.run(list(names), {name: value for name, value in feeds.items() if name in wanted})
        except Exception as error:  # its C++ side raises various classes
            raise InvalidModelError(f"ONNX Runtime cannot run the model: {error}") from error
        return dict(zip(names, map(np.asarray, results), strict=True))

    return run


def _onnx_reference(proto: onnx.ModelProto, source: object) -> Run:
    from onnx.reference import ReferenceEvaluator

    def run(feeds: Mapping[str, Array], names: Sequence[str]) -> dict[str, Array]:
        try:
            results: Any = ReferenceEvaluator(_with_outputs(proto, names)).run(None, dict(feeds))
        except Exception as error:
            raise InvalidModelError(f"the reference evaluator of onnx cannot run the model: {error}") from error
        return dict(zip(names, map(np.asarray, results), strict=True))

    return run


def _with_outputs(proto: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """The model with these values as outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    declared = {each.name: each for each in proto.graph.output}
    inferred = onnx.shape_inference.infer_shapes(proto).graph.value_info if proto.ByteSize() < 1 << 31 else ()
    known = {**{each.name: each for each in inferred}, **declared}
    del copy.graph.output[:]
    copy.graph.output.extend(known.get(name, onnx.ValueInfoProto(name=name)) for name in names)
    return copy
