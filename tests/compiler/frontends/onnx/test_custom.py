"""Users' converters are registered, found by the importer, and named in errors."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tvm.relax import op as R

import tensorwright
from compiler.errors import OptionError, UnsupportedModelError
from compiler.frontends.onnx import registry

DOMAIN = "com.example"


@pytest.fixture(autouse=True)
def _registered_converters(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Remove a test's registrations after it."""
    registry.discover()
    monkeypatch.setattr(registry, "_CONVERTERS", {key: dict(value) for key, value in registry._CONVERTERS.items()})
    yield
    registry.load_installed.cache_clear()


def model(operator: str = "ScaledSwish", version: int = 1, **attributes: Any) -> onnx.ModelProto:
    nodes = [
        helper.make_node(operator, ["x"], ["h"], name="layer1/act", domain=DOMAIN, **attributes),
        helper.make_node("Neg", ["h"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 5]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, version)])


def scaled_swish(node: Any) -> Any:
    return R.multiply(R.nn.silu(node.input(0)), node.literal(node.attribute("scale", 1.0), node.dtype(0)))


def test_registered_converter_is_compiled() -> None:
    tensorwright.register_onnx_operator("ScaledSwish", domain=DOMAIN)(scaled_swish)
    assert tensorwright.coverage_report(model()).complete
    x = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    got = tensorwright.compile(model(scale=2.5), threads=1).run({"x": x})["y"]
    np.testing.assert_allclose(got, -2.5 * x / (1 + np.exp(-x.astype(np.float64))), rtol=1e-5, atol=1e-6)


def test_error_names_the_way_to_register() -> None:
    with pytest.raises(UnsupportedModelError, match=r"ScaledSwish \(node 'layer1/act'\)") as caught:
        tensorwright.compile(model())
    assert "@tensorwright.register_onnx_operator('ScaledSwish', domain='com.example')" in str(caught.value.hint)


def test_later_version_has_its_own_converter() -> None:
    tensorwright.register_onnx_operator("ScaledSwish", domain=DOMAIN)(lambda node: R.negative(node.input(0)))
    tensorwright.register_onnx_operator("ScaledSwish", domain=DOMAIN, since=2)(lambda node: node.input(0))
    x = np.ones((1, 5), np.float32)
    for version, expected in ((1, 1), (2, -1), (3, -1)):
        assert (tensorwright.compile(model(version=version), threads=1).run([x])["y"] == expected).all()


def test_failing_converter_is_named() -> None:
    @tensorwright.register_onnx_operator("ScaledSwish", domain=DOMAIN)
    def broken(node: Any) -> Any:
        return node.input(0) + [][1]

    with pytest.raises(OptionError, match=r"broken of the operator 'ScaledSwish'.*at node 'layer1/act': IndexError"):
        tensorwright.compile(model())


def test_refusal_of_a_converter_is_one_of_the_models() -> None:
    tensorwright.register_onnx_operator("ScaledSwish", domain=DOMAIN)(lambda node: node.refuse("only scale 1"))
    with pytest.raises(UnsupportedModelError, match="only scale 1"):
        tensorwright.compile(model())


def test_taken_operators_are_refused_and_the_same_function_may_come_again() -> None:
    for _ in range(2):
        tensorwright.register_onnx_operator("ScaledSwish", domain=DOMAIN)(scaled_swish)
    with pytest.raises(OptionError, match=r"has a converter from version 1 on: .*scaled_swish"):
        tensorwright.register_onnx_operator("ScaledSwish", domain=DOMAIN)(lambda node: node.input(0))
    with pytest.raises(OptionError, match="has a converter"):
        tensorwright.register_onnx_operator("Neg", domain="ai.onnx")(scaled_swish)


def test_package_that_cannot_be_loaded_is_named_and_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("mine", "no_such_module_of_mine", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry])
    registry.load_installed.cache_clear()
    x = np.ones((1, 5), np.float32)
    tensorwright.register_onnx_operator("ScaledSwish", domain=DOMAIN)(lambda node: R.negative(node.input(0)))
    with pytest.warns(UserWarning, match="no_such_module_of_mine.*cannot be loaded: ModuleNotFoundError"):
        assert (tensorwright.compile(model(), threads=1).run([x])["y"] == 1).all()
