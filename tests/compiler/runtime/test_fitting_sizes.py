from __future__ import annotations

import numpy as np
import onnx
import pytest

import tensorwright
from compiler.artifact.manifest import Requirement
from compiler.profiling.workload import complete_inputs
from compiler.runtime.fitting_sizes import fitting_sizes


def relation(left: str, kind: str, right: str) -> Requirement:
    names = {name: name for name in ("b", "h", "w")}
    return Requirement(left=left, relation=kind, right=right, symbols=names, where="a test")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("relations", "expected"),
    [
        ([], {"b": 1, "h": 1, "w": 1}),
        ([("h", "at least", "65")], {"b": 1, "h": 96, "w": 1}),
        ([("h % 32", "equal", "0"), ("w % 32", "equal", "0")], {"b": 1, "h": 32, "w": 32}),
        ([("h", "equal", "w"), ("h", "at least", "7")], {"b": 1, "h": 7, "w": 7}),
        ([("h + w", "equal", "14"), ("h", "equal", "w")], {"b": 1, "h": 7, "w": 7}),
        ([("h", "broadcast", "w"), ("8 // (h - 1)", "at least", "2")], {"b": 1, "h": 2, "w": 1}),
    ],
)
def test_the_least_sizes_that_all_relations_allow(
    relations: list[tuple[str, str, str]], expected: dict[str, int]
) -> None:
    sizes = {"b": 1, "h": 1, "w": 1}
    assert fitting_sizes(sizes, {"h", "w"}, [relation(*each) for each in relations]) == expected


def test_given_sizes_stay() -> None:
    sizes = {"b": 1, "h": 1, "w": 1}
    assert fitting_sizes(sizes, {"w"}, [relation("h", "equal", "2 * w")]) == sizes
    assert fitting_sizes({**sizes, "h": 8}, {"w"}, [relation("h", "equal", "2 * w")]) == {"b": 1, "h": 8, "w": 4}


def test_a_module_that_refuses_small_sizes_has_an_example_and_makes_inputs_up() -> None:
    graph = "(float[n] x) => (float[m] y) { y = Pad<mode = 'reflect'>(x, pads) }"
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> agraph {graph}'.replace("'", '"'))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([20, 3]), "pads"))
    module = tensorwright.compile(model, threads=1)
    (example,) = module.artifact.reference_inputs.values()
    assert example.shape == (21,)
    made = complete_inputs(module, {"x": "random"})["x"]
    assert np.array_equal(module.run({"x": made})["y"], np.pad(made, (20, 3), mode="reflect"))
