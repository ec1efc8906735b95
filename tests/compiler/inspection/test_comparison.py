"""`compare` reports equal models as equal, and names the first node that differs in others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from tvm.relax import op as R

import tensorwright
from compiler.cli import main
from compiler.errors import OptionError
from compiler.frontends.onnx import registry
from compiler.inspection.comparing.onnx_side import OnnxSide, tensor_values
from compiler.inspection.comparison import Difference, _difference
from tests.compiler.cli.running import isolated_consoles

TEXT = """<ir_version: 8, opset_import: ["" : 17]> agraph (float[n,6] x) => (float[n,6] y) {
    a = Relu(x)
    b = Softplus(a)
    c = Mul(b, a)
    y = Tanh(c)
}"""


def model() -> onnx.ModelProto:
    return onnx.parser.parse_model(TEXT)


@pytest.mark.parametrize("reference", ["onnxruntime", "onnx"])
def test_equal_models(reference: str) -> None:
    if reference == "onnxruntime":
        pytest.importorskip("onnxruntime")
    found = tensorwright.compare(model(), reference=reference, sizes={"n": 5}, threads=1, layers=reference == "onnx")
    assert found.equal
    assert found.first is None
    assert found.summary.startswith(f"equal to {reference} within 0.001")
    assert [each.name for each in found.outputs] == ["y"]
    assert [each.name for each in found.layers] == (["a", "b", "c", "y"] if reference == "onnx" else [])


def test_the_first_layer_that_differs_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry.discover()
    wrong = {1: lambda context: R.exp(context.input(0))}
    monkeypatch.setitem(registry._CONVERTERS, ("", "Softplus"), wrong)
    path = tmp_path / "m.onnx"
    onnx.save(model(), path)
    tensors = tmp_path / "first.npz"
    options = ["--with", "onnx", "--shape", "n=3", "--threads", "1", "--first-difference", str(tensors)]
    with isolated_consoles():
        assert main(["compare", str(path), *options]) == 1
    with np.load(tensors) as saved:
        read = saved["operand a"].astype(np.float64)
        np.testing.assert_allclose(saved["reference"], np.log1p(np.exp(read)), rtol=1e-5)
        np.testing.assert_allclose(saved["ours"], np.exp(read), rtol=1e-5)
    assert "the first layer that differs is Softplus node 'b', value 'b'" in capsys.readouterr().out


def test_a_difference_of_fused_nodes_alone_is_bisected(monkeypatch: pytest.MonkeyPatch) -> None:
    """`b` is wrong unless it is an output, as with a fusion defect."""
    whole = OnnxSide.ours

    def ours(side: OnnxSide, names: Sequence[str]) -> dict[str, np.ndarray]:
        found = whole(side, names)
        wrong = len(names) == 1 and names[0] in ("b", "c", "y")
        return {name: array + 1 if wrong else array for name, array in found.items()}

    monkeypatch.setattr(OnnxSide, "ours", ours)
    found = tensorwright.compare(model(), reference="onnx", sizes={"n": 2}, threads=1, first_difference=True)
    assert not any(each.differs for each in found.layers)
    assert found.first is not None
    assert found.first.name == "b"
    assert "fused with the layer before it" in found.summary
    assert set(found.tensors) == {"ours", "reference", "operand a"}


def test_a_torch_module_is_compared_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Softplus(), torch.nn.Linear(5, 3)).eval()
    example = (torch.randn(2, 6),)
    found = tensorwright.compare(net, example_inputs=example, threads=1, layers=True)
    assert (found.reference, found.equal, found.first) == ("torch", True, None)
    assert len(found.layers) >= 3
    registry.discover()
    monkeypatch.setitem(registry._CONVERTERS, ("", "Softplus"), {1: lambda context: R.exp(context.input(0))})
    found = tensorwright.compare(net, example_inputs=example, threads=1, first_difference=True)
    assert found.first is not None
    assert found.first.node == "softplus node '1'"
    assert set(found.tensors) >= {"ours", "reference"}
    with pytest.raises(OptionError, match="reference='onnx'"):
        tensorwright.compare(net, example_inputs=example, reference="onnx")


def test_what_counts_as_different() -> None:
    def found(ours: list[float], theirs: list[float]) -> Difference:
        return _difference("x", "n", np.array(ours, np.float32), np.array(theirs, np.float32), 1e-3)

    assert not found([1, 100.05], [1, 100]).differs
    assert found([1, 101], [1, 100]).error == pytest.approx(0.01)
    assert found([1, np.nan], [1, 100]).problem
    assert not found([np.nan, np.inf], [np.nan, np.inf]).differs
    assert found([1], [1, 2]).problem == "shape [1], not [2]"


def test_values_are_tensors_and_options_are_checked() -> None:
    assert tensor_values(model()) == ["a", "b", "c", "y"]
    with pytest.raises(OptionError, match="reference='tflite'"):
        tensorwright.compare(model(), reference="tflite")
