"""Compare models with ONNX Runtime as the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx.parser
import pytest

from compiler.frontends.onnx import dtypes
from targets import cpuinfo
from tests.coverage.tvm_pipeline import import_and_build

Feeds = Mapping[str, np.ndarray]

# On x86 without VNNI, ONNX Runtime adds pairs of products of uint8 and int8 in 16 bits, with saturation, whatever a
# session asks for where the weights are inputs; with int8 of 7 bits no sum of two saturates.
INT8_END = 128 if cpuinfo.supports("avx512vnni") or cpuinfo.supports("avxvnni") else 64


def random_int8(generator: np.random.Generator, *shape: int) -> np.ndarray:
    """int8 values small enough that ONNX Runtime sums their products with uint8 exactly on this processor."""
    return generator.integers(-INT8_END, INT8_END, shape).astype(np.int8)


def precise_options() -> Any:
    """Options of ONNX Runtime's sessions with which products of uint8 and constant int8 are summed exactly.

    They take effect with all its optimizations.
    """
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def precise_session(model: onnx.ModelProto) -> Any:
    """ONNX Runtime's session with these options."""
    onnxruntime = pytest.importorskip("onnxruntime")
    return onnxruntime.InferenceSession(
        model.SerializeToString(), precise_options(), providers=["CPUExecutionProvider"]
    )


def run_reference(model: onnx.ModelProto, feeds: Feeds) -> list[np.ndarray]:
    """ONNX Runtime's outputs, unoptimized."""
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1  # DynamicQuantizeLSTM has a scale for the samples of each thread
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {name: np.asarray(value) for name, value in feeds.items()}))


def assert_equal_to_onnxruntime(
    model: onnx.ModelProto | str, *feeds: Feeds, rtol: float = 1e-5, atol: float = 1e-5, **options: Any
) -> None:
    """Compile once and run on each of `feeds`; compare floats within a tolerance and other types exactly."""
    if isinstance(model, str):
        model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17, "com.microsoft": 1]> {model}')
    run = import_and_build(model, **options)
    for feed in feeds:
        expected = run_reference(model, feed)
        for (name, found), reference in zip(run(feed).items(), expected, strict=True):
            assert (found.dtype, found.shape) == (reference.dtype, reference.shape), name
            if found.dtype.kind == "f":
                np.testing.assert_allclose(found, reference, rtol=rtol, atol=atol, err_msg=name)
            else:
                np.testing.assert_array_equal(found, reference, err_msg=name)


def node_model(
    operator: str,
    inputs: Mapping[str, Any],
    outputs: int = 1,
    *,
    constants: Sequence[str] = (),
    domain: str = "",
    opset: int = 17,
    dynamic: bool = False,
    **attributes: Any,
) -> onnx.ModelProto:
    """A model of one node; inputs that are None are left out, those in `constants` become initializers.

    With `dynamic`, every size of the inputs is symbolic.
    """
    names = [name if array is not None else "" for name, array in inputs.items()]
    given = {name: np.asarray(array) for name, array in inputs.items() if array is not None}
    node = onnx.helper.make_node(operator, names, [f"y{i}" for i in range(outputs)], domain=domain, **attributes)
    specs = [
        onnx.helper.make_tensor_value_info(
            name,
            dtypes.NUMBERS[array.dtype.name],
            [f"{name}{axis}" for axis in range(array.ndim)] if dynamic else array.shape,
        )
        for name, array in given.items()
        if name not in constants
    ]
    initializers = [onnx.numpy_helper.from_array(given[name], name) for name in constants if name in given]
    values = [onnx.ValueInfoProto(name=name) for name in node.output]
    graph = onnx.helper.make_graph([node], operator, specs, values, initializers)
    imports = [onnx.helper.make_opsetid("", opset)]
    if domain:
        imports.append(onnx.helper.make_opsetid(domain, 1))
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=10)
