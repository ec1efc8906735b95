"""Build small models, and compare an import with ONNX Runtime (with onnx's reference where that has no kernel)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnxruntime
from onnx.reference import ReferenceEvaluator

from tests.coverage.tvm_pipeline import import_and_build

OPSET = 22
Wanted = dict[str, tuple["Case", np.ndarray]]


@dataclass
class Case:
    """One node: its operator, inputs (arrays; None leaves one out), attributes, and which inputs are constants.

    `expected` are its outputs where no reference runs it.
    """

    operator: str
    inputs: Sequence[np.ndarray | None]
    attributes: dict[str, Any] = field(default_factory=dict)
    constants: Sequence[int] = ()
    outputs: int = 1
    opset: int = OPSET
    rtol: float = 1e-5
    atol: float = 1e-6
    expected: Sequence[np.ndarray] | None = None

    def model(self, *, dynamic: bool = False) -> onnx.ModelProto:
        """The node alone, as a model, whose sizes of 0 are fixed, or found when it runs."""
        names = ["" if array is None else f"i{index}" for index, array in enumerate(self.inputs)]
        node = onnx.helper.make_node(self.operator, names, [f"o{i}" for i in range(self.outputs)], **self.attributes)
        given = {name: array for name, array in zip(names, self.inputs, strict=True) if array is not None}
        fixed = {f"i{i}" for i in self.constants}
        empty = "n" if dynamic else 0
        specs = [value_info(name, array, empty) for name, array in given.items() if name not in fixed]
        weights = [onnx.numpy_helper.from_array(array, name) for name, array in given.items() if name in fixed]
        return make_model([node], specs, [f"o{i}" for i in range(self.outputs)], weights, self.opset)

    def feeds(self) -> dict[str, np.ndarray]:
        """The values of the inputs that are not constant."""
        return {f"i{i}": array for i, array in enumerate(self.inputs) if array is not None and i not in self.constants}


def value_info(name: str, array: np.ndarray, empty: int | str = 0) -> onnx.ValueInfoProto:
    """The declaration of an input like the array, with `empty` for sizes of 0."""
    number = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    return onnx.helper.make_tensor_value_info(name, number, [size or empty for size in array.shape])


def make_model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[str],
    initializers: Sequence[onnx.TensorProto] = (),
    opset: int = OPSET,
) -> onnx.ModelProto:
    """A model with untyped outputs."""
    results = [onnx.ValueInfoProto(name=name) for name in outputs]
    graph = onnx.helper.make_graph(list(nodes), "graph", list(inputs), results, list(initializers))
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=10)


def reference(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs of ONNX Runtime without its graph optimizations; of onnx's own reference where it has no kernel."""
    typed = onnx.shape_inference.infer_shapes(model)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(typed.SerializeToString(), options, ["CPUExecutionProvider"])
    except Exception:  # no kernel for these types
        results: Any = ReferenceEvaluator(model).run(None, dict(feeds))
        return [np.asarray(result) for result in results]
    return list(session.run(None, dict(feeds)))


def check_model(
    model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], rtol: float = 1e-5, atol: float = 1e-6, **options: Any
) -> None:
    """Import, build with TVM's own pipeline, run, and compare every output."""
    expected = reference(model, feeds)
    outputs = import_and_build(model, **options)(feeds)
    for (name, found), wanted in zip(outputs.items(), expected, strict=True):
        assert_same(found, wanted, rtol, atol, name)


def assert_same(found: np.ndarray, wanted: np.ndarray, rtol: float, atol: float, what: str) -> None:
    """Equal shapes and types; floats within the tolerance, everything else exactly."""
    assert found.shape == wanted.shape, f"{what}: shape {found.shape}, not {wanted.shape}"
    assert found.dtype == wanted.dtype, f"{what}: type {found.dtype}, not {wanted.dtype}"
    if found.dtype.kind == "f":
        if found.dtype == np.float16:
            rtol, atol = max(rtol, 2e-3), max(atol, 2e-3)
        np.testing.assert_allclose(found, wanted, rtol=rtol, atol=atol, err_msg=what)
    else:
        np.testing.assert_array_equal(found, wanted, err_msg=what)


def check_cases(cases: Sequence[Case]) -> list[str]:
    """Check the import of many nodes in one module, which costs one compilation; returns what differs."""
    merged, feeds, wanted = merged_cases(cases)
    return differences(import_and_build(merged)(feeds), wanted)


def differences(outputs: Mapping[str, np.ndarray], wanted: Wanted) -> list[str]:
    """Differences between the outputs of merged cases."""
    failures = []
    for name, (case, expected) in wanted.items():
        try:
            assert_same(outputs[name], expected, case.rtol, case.atol, name)
        except AssertionError as error:
            shapes = [None if a is None else f"{a.dtype}{list(a.shape)}" for a in case.inputs]
            message = " ".join(str(error).split())[:500]
            failures.append(f"{case.operator} {shapes} {case.attributes} constants={case.constants}: {message}")
    return failures


def merged_cases(
    cases: Sequence[Case], *, dynamic: bool = False
) -> tuple[onnx.ModelProto, dict[str, np.ndarray], Wanted]:
    """The cases' models side by side, renamed; they must share an opset. `dynamic`: see `Case.model`."""
    nodes: list[onnx.NodeProto] = []
    inputs: list[onnx.ValueInfoProto] = []
    weights: list[onnx.TensorProto] = []
    outputs: list[str] = []
    feeds: dict[str, np.ndarray] = {}
    wanted: Wanted = {}
    for index, case in enumerate(cases):
        model = case.model()
        arrays = reference(model, case.feeds()) if case.expected is None else case.expected
        for name, array in zip([o.name for o in model.graph.output], arrays, strict=True):
            wanted[f"c{index}_{name}"] = (case, array)
        renamed = onnx.compose.add_prefix(case.model(dynamic=dynamic), f"c{index}_")
        for spec in renamed.graph.input:
            for size in spec.type.tensor_type.shape.dim:
                if size.dim_param:
                    size.dim_param = f"c{index}_{size.dim_param}"
        nodes.extend(renamed.graph.node)
        inputs.extend(renamed.graph.input)
        weights.extend(renamed.graph.initializer)
        outputs.extend(o.name for o in renamed.graph.output)
        feeds.update({f"c{index}_{name}": array for name, array in case.feeds().items()})
    return make_model(nodes, inputs, outputs, weights, cases[0].opset), feeds, wanted
