"""Split inference: cuts, transfer types, the choice by costs, and both halves over HTTP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import compiler
from compiler.cli import main
from compiler.compression.model import canonical
from compiler.driver.compile import find_target
from compiler.errors import AccuracyError, InputError, NothingGainedError, OptionError, ServiceUnavailableError
from compiler.frontends.source import ImportOptions
from compiler.serving.configuration import model_options
from compiler.serving.split_client import SplitClient
from compiler.splitting.cuts import Cut, Wire, calibrated, find_cuts, halves, wire_dtype
from compiler.splitting.split import Choice, Error, Measured, Network, _Splitter, best_of, bits_per_second, seconds
from tests.compiler.serving.server import serving

RNG = np.random.default_rng(0)
X = RNG.standard_normal((3, 64)).astype(np.float32)


def branched() -> onnx.ModelProto:
    """x (batch, 64), mask (batch, 4): two branches that meet, one of which reads the mask; few values in the middle."""
    weights = {"w0": (64, 8), "w1": (8, 48), "w2": (8, 48), "w3": (48, 4)}
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["narrow"]),
        helper.make_node("MatMul", ["narrow", "w1"], ["left"]),
        helper.make_node("Relu", ["left"], ["positive"]),
        helper.make_node("MatMul", ["narrow", "w2"], ["right"]),
        helper.make_node("Add", ["positive", "right"], ["sum"]),
        helper.make_node("MatMul", ["sum", "w3"], ["scores"]),
        helper.make_node("Where", ["mask", "scores", "zero"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "branched",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64]),
            helper.make_tensor_value_info("mask", TensorProto.BOOL, ["batch", 4]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [
            *(
                numpy_helper.from_array((RNG.standard_normal(shape) / 8).astype(np.float32), name)
                for name, shape in weights.items()
            ),
            numpy_helper.from_array(np.array(0, np.float32), "zero"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("split") / "branched.onnx"
    onnx.save(branched(), str(path))
    return path


@pytest.fixture(scope="module")
def inputs() -> dict[str, Any]:
    return {"x": X, "mask": np.array([[True, True, False, True]] * 3)}


@pytest.fixture(scope="module")
def expected(model: Path, inputs: dict[str, Any]) -> Any:
    return onnxruntime.InferenceSession(str(model)).run(None, inputs)[0]


def test_halves_give_the_whole_model(model: Path, inputs: dict[str, Any], expected: Any) -> None:
    whole = canonical(ImportOptions().load(model), find_target("host"))
    cuts = {cut.after: cut for cut in find_cuts(whole)}
    crossing = {name: {each.name for each in cut.crossing} for name, cut in cuts.items()}
    assert crossing["the inputs"] == {"x", "mask"}
    both = cuts[next(name for name, names in crossing.items() if len(names) == 3)]  # two branches and the mask
    wires = [Wire("float16" if place else "float32") for place in range(3)]
    front, back = (compiler.compile(half, threads=1) for half in halves(whole, both, wires))
    assert {each.name for each in back.inputs} == {each.name for each in front.outputs} == crossing[both.after]
    sent = front.run({each.name: inputs[each.name] for each in front.inputs})
    kinds = [str(sent[each.name].dtype) for each in both.crossing]
    expected_kinds = [wire_dtype(each.dtype, wire.kind) for each, wire in zip(both.crossing, wires, strict=True)]
    assert kinds == expected_kinds
    assert "float16" in kinds
    np.testing.assert_allclose(back.run(sent)["y"], expected, rtol=3e-3, atol=3e-3)


def test_wire_types_cover_their_values() -> None:
    values = np.array([-1.0, 0.0, 3.0, np.inf], np.float32)
    wire = calibrated("int8", [values[:3], values])
    assert wire.through(values[:2]) == pytest.approx(values[:2], abs=wire.scale / 2)
    assert wire.through(np.zeros(1, np.float32)) == 0  # zero is exact: padding and ReLU
    assert calibrated("int8", [np.zeros(3, np.float32)]).scale == 1.0
    assert Wire("float16").through(np.array([1e6], np.float32)) == 65504
    with pytest.raises(OptionError, match="unknown wire type"):
        calibrated("int4", [values])


def test_the_command_splits_and_the_halves_answer_over_http(
    model: Path, inputs: dict[str, Any], expected: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "a.npz", **inputs)
    halves_folder = tmp_path / "halves"
    options = ["--bandwidth", "100kbit", "--samples", str(tmp_path / "a.npz"), "--threads", "1", "--json"]
    assert main(["split", str(model), *options, "-o", str(halves_folder), "--at", _narrow(model)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["chosen"]["wire"] == "int8"  # the slow network decides
    assert report["chosen"]["nbytes"] == 8 + 4
    assert report["error"]["cosine"] > 0.99
    served = model_options({"name": "half", "path": str(halves_folder / "server")}, "model 1")
    with serving([served]) as server, SplitClient(halves_folder / "client.twm", server.url, "half") as split:
        got = split.run(inputs)["y"]
        assert np.abs(got - expected).max() <= report["error"]["largest"] + 1e-6
        assert np.array_equal(split.run(inputs)["y"], got)
        with pytest.raises(InputError):
            split.run({"x": X})
        wrong = SplitClient(halves_folder / "client.twm", server.url, "other")
        with pytest.raises(InputError, match="404"):
            wrong.run(inputs)
        url = server.url
    gone = SplitClient(halves_folder / "client.twm", url, "half")
    with pytest.raises(ServiceUnavailableError, match="does not answer"):
        gone.run(inputs)


def _narrow(model: Path) -> str:
    whole = canonical(ImportOptions().load(model), find_target("host"))
    return next(each.after for each in find_cuts(whole) if len(each.crossing) == 2 and each.position)


def measured(seconds_each: float, cosine: float, wire: str) -> Measured:
    choice = Choice(1, "conv", wire, 100, seconds_each / 2, seconds_each / 4, seconds_each / 4)
    return Measured(choice, Cut(1, "conv", ()), [], Error(0.0, 0.0, cosine))


def test_the_fastest_that_is_accurate_enough_is_chosen(model: Path) -> None:
    found = [measured(3.0, 1.0, "float32"), measured(2.0, 0.999, "float16"), measured(1.0, 0.9, "int8")]
    assert best_of(found, 0.2, 5.0).choice.wire == "int8"
    assert best_of(found, 0.01, 5.0).choice.wire == "float16"
    assert best_of(found, 0.0, None).choice.wire == "float32"
    with pytest.raises(NothingGainedError, match="the client alone"):
        best_of(found, 0.01, 1.5)
    with pytest.raises(AccuracyError, match="no wire type holds"):
        best_of(found[1:], 0.0, None)
    with pytest.raises(OptionError, match="cannot be cut after 'nowhere'"):
        compiler.split(model, bandwidth=1e6, at="nowhere")
    with pytest.raises(OptionError, match="numbers above 0"):
        compiler.split(model, bandwidth=0)


def test_times_are_of_the_sizes_that_bytes_are_counted_for(model: Path, inputs: dict[str, Any]) -> None:
    host = find_target("host")
    splitter = _Splitter(ImportOptions().load(model), "branched", (host, host), Network(bandwidth=1e6, latency=0.0))
    splitter.size = 2
    splitter.use([inputs])
    assert [each["x"].shape for each in (splitter.timed, *splitter.samples)] == [(2, 64), (3, 64)]


def test_quantities() -> None:
    assert bits_per_second("10Mbit") == bits_per_second("10 Mb/s") == 1e7
    assert bits_per_second("2MB") == 1.6e7
    assert (seconds("20ms"), seconds("0.1s")) == (0.02, 0.1)
    for text in ("fast", "0Mbit", "10"):
        with pytest.raises(OptionError, match="not a bandwidth"):
            bits_per_second(text)
    with pytest.raises(OptionError, match="not a time"):
        seconds("20")
