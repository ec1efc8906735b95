"""Random single nodes, with any of their sizes symbolic, compared with an independent implementation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx.helper
import pytest

from tests.compiler.frontends.onnx.support import reference
from tests.coverage.tvm_pipeline import import_and_build

Generator = np.random.Generator
Maker = Callable[[Generator], "NodeCase"]

# float16 results are rounded once here, and often step by step in a reference.
TOLERANCES = {"float16": 5e-3, "float32": 2e-5, "float64": 1e-9}


@dataclass
class NodeCase:
    """A node and its inputs.

    Attributes:
        dims: names of symbolic sizes by input and axis; the random half of them that a test asks for is used.
        constants: inputs that are initializers when the test asks for constants.
        fixed: inputs that are always initializers.
        expected: the outputs, where no reference implementation is to be trusted.
        tolerance: replaces that of the type, absolute (scaled by the largest magnitude, at least 1) and relative.
    """

    operator: str
    inputs: Sequence[np.ndarray | None]
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: Sequence[str] = ("y0",)
    opset: int = 22
    dims: Mapping[int, Mapping[int, str]] = field(default_factory=dict)
    constants: frozenset[int] = frozenset()
    fixed: frozenset[int] = frozenset()
    expected: Sequence[np.ndarray] | None = None
    tolerance: float | None = None


def node_model(case: NodeCase, *, symbolic: bool, constant: bool) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """The node as a model, and its input feeds."""
    weights = case.fixed | (case.constants if constant else frozenset())
    names = ["" if array is None else f"x{index}" for index, array in enumerate(case.inputs)]
    node = onnx.helper.make_node(case.operator, names, list(case.outputs), **case.attributes)
    feeds, inputs, initializers = {}, [], []
    for index, array in enumerate(case.inputs):
        if array is None:
            continue
        if index in weights:
            initializers.append(onnx.numpy_helper.from_array(array, names[index]))
            continue
        shape: list[int | str] = list(array.shape)
        for axis, name in (case.dims.get(index, {}) if symbolic else {}).items():
            shape[axis] = name
        number = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        inputs.append(onnx.helper.make_tensor_value_info(names[index], number, shape))
        feeds[names[index]] = array
    results = [onnx.ValueInfoProto(name=name) for name in case.outputs if name]
    graph = onnx.helper.make_graph([node], "node", inputs, results, initializers)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", case.opset)], ir_version=10), feeds


def check(case: NodeCase, *, symbolic: bool = False, constant: bool = False) -> None:
    """Compile and run the node, and compare all of its outputs."""
    model, feeds = node_model(case, symbolic=symbolic, constant=constant)
    wanted = case.expected if case.expected is not None else reference(model, feeds)
    found = list(import_and_build(model)(feeds).values())
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        if ours.dtype.kind != "f":
            np.testing.assert_array_equal(ours, theirs)
            continue
        tolerance = case.tolerance if case.tolerance is not None else TOLERANCES[ours.dtype.name]
        finite = np.abs(theirs[np.isfinite(theirs)].astype(np.float64))
        scale = max(1.0, float(finite.max(initial=0.0)))
        np.testing.assert_allclose(
            ours.astype(np.float64), theirs.astype(np.float64), rtol=tolerance, atol=tolerance * scale
        )


def check_random(maker: Maker, seed: int) -> None:
    """Check a random case of a maker, with symbolic sizes and constant weights in turn."""
    check(maker(np.random.default_rng(seed)), symbolic=seed % 2 == 1, constant=seed % 3 == 0)


def over_seeds(count: int, *makers: Maker) -> pytest.MarkDecorator:
    """Parametrize a test by `maker` and `seed`."""
    names = [f"{maker.__name__}-{seed}" for maker in makers for seed in range(count)]
    return pytest.mark.parametrize(
        ("maker", "seed"), [(maker, seed) for maker in makers for seed in range(count)], ids=names
    )


def normal(random: Generator, *shape: int, dtype: str = "float32", scale: float = 1.0) -> np.ndarray:
    """Normal numbers."""
    return np.asarray(random.standard_normal(shape) * scale, dtype)


def integers(random: Generator, count: int, low: int, high: int) -> list[int]:
    """`count` integers from low to high, both included."""
    return [int(value) for value in random.integers(low, high + 1, count)]


def pick(random: Generator, *choices: Any) -> Any:
    """Pick one of the choices."""
    return choices[int(random.integers(len(choices)))]


def chance(random: Generator, probability: float = 0.5) -> bool:
    """Return true with this probability."""
    return bool(random.random() < probability)
