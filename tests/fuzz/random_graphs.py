"""Random graphs compared with ONNX Runtime on the same inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from tests.fuzz import graph_network_operators  # noqa: F401  (registers its templates)
from tests.fuzz.graph_builder import GraphBuilder
from tests.fuzz.graph_operators import TEMPLATES

# Chains of float32 operators in another order of summation; measured against the magnitude of the tensor.
TOLERANCE = 2e-4


def random_model(seed: int) -> tuple[onnx.ModelProto, dict[str, NDArray[Any]]]:
    """A model of 1 to 14 nodes with its inputs, the same for the same seed."""
    build = GraphBuilder(np.random.default_rng(seed))
    for _ in range(build.integer(1, 3)):
        rank = build.integer(1, 4)
        build.add_input(tuple(build.integer(1, 9) for _ in range(rank)))
    if build.chance():
        build.add_input(
            (build.integer(1, 2), build.choice([1, 3, 4, 8, 16, 17]), build.integer(3, 12), build.integer(3, 12))
        )
    wanted = build.integer(1, 14)
    attempts = 0
    while len(build.nodes) < wanted or attempts == 0:
        attempts += 1
        build.choice(TEMPLATES)(build)
        if attempts > 200 and build.nodes:
            break
    return build.model(), build.inputs


def reference(model: onnx.ModelProto, inputs: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """Outputs of ONNX Runtime without its optimizations."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    results: list[NDArray[Any]] = session.run(None, inputs)
    return results


def difference(ours: NDArray[Any], theirs: NDArray[Any]) -> str | None:
    """The fault of an output, or None."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return f"{ours.dtype}{ours.shape} instead of {theirs.dtype}{theirs.shape}"
    if ours.dtype.kind != "f":
        return None if np.array_equal(ours, theirs) else "different integers or booleans"
    if not np.array_equal(np.isnan(ours), np.isnan(theirs)) or not np.array_equal(np.isinf(ours), np.isinf(theirs)):
        return "NaN or infinity at other indices"
    finite = np.isfinite(theirs)
    if not finite.any():
        return None
    scale = max(1.0, float(np.abs(theirs[finite]).max()))
    error = float(np.abs(ours.astype(np.float64) - theirs)[finite].max()) / scale
    return None if error <= TOLERANCE else f"relative error {error:.1e}"
