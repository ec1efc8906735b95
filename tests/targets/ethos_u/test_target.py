"""The target from end to end: presets, the suite, reports, refusals, files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import compiler
import targets
from compiler.driver.conformance import check_target
from compiler.inspection.contents import inspect_module
from targets.conformance.models import quantized_net, random_inputs, small_net
from targets.conformance.suite import checks
from targets.ethos_u import vela
from targets.ethos_u.program import Program
from targets.ethos_u.runtime import execute
from targets.extras import install_command
from tests.targets.ethos_u.checking import DEFAULT, planned, random_operands, target_named
from tests.targets.ethos_u.graphs import QuantizedGraph

# What concerns the accelerator; float models take the same way as on the processor alone.
_CHECKS = (
    "description",
    "quantized net",
    "quantized functions",
    "dynamic batch",
    "file round trip",
    "refusal",
    "partition",
)


def report_of(model: onnx.ModelProto, target: str = DEFAULT) -> Any:
    return compiler.compile(model, target, threads=1, records=False).manifest.target.details["partition"]


def test_the_presets_are_listed() -> None:
    names = [name for name in targets.names() if "ethos-u" in name]
    assert {DEFAULT, "cortex-m55+ethos-u65-512", "cortex-m85+ethos-u85-256"} <= set(names)
    assert "simulated" in targets.get(DEFAULT).how_it_runs()


@pytest.mark.parametrize("name", _CHECKS)
def test_it_passes_the_suite(name: str) -> None:
    assert name in {check.name for check in checks()}
    (outcome,) = check_target(DEFAULT, name)
    assert outcome.problem is None, outcome.problem


_U85 = "cortex-m85+ethos-u85-256"


@pytest.mark.parametrize("name", ["quantized net", "quantized functions"])
def test_a_u85_without_a_simulator_passes_as_tosa_graphs(name: str) -> None:
    (outcome,) = check_target(_U85, name)
    assert outcome.problem is None, outcome.problem
    assert "as a TOSA graph" in targets.get(_U85).how_it_runs()


def test_a_file_for_a_u85_holds_the_graph_that_it_runs_as(tmp_path: Path) -> None:
    model, _ = quantized_net()
    inputs, path = random_inputs(model), tmp_path / "net.twm"
    module = compiler.compile(model, _U85, threads=1, records=False)
    module.export(path)
    other = compiler.compile(model, DEFAULT, threads=1, records=False).run(inputs)
    for name, value in compiler.load(path, threads=1).run(inputs).items():
        np.testing.assert_array_equal(value, other[name])


def test_the_report() -> None:
    report = report_of(quantized_net()[0])
    assert report["operators"]["share"] == report["macs"]["share"] == 1
    estimate = report["estimate"]
    assert estimate["cycles"] > 0
    assert estimate["bytes_accessed"]["sram"] > 0
    assert sum(layer["macs"] for layer in estimate["layers"]) == pytest.approx(report["macs"]["accelerator"], rel=0.01)
    assert report["summary"][0] == "ethos-u55-128: 100 % of the operators, 100 % of the multiply-adds"


def test_what_a_file_says(tmp_path: Path) -> None:
    path = tmp_path / "net.twm"
    compiler.compile(quantized_net()[0], DEFAULT, threads=1, records=False).export(path)
    assert "100 % of the operators" in inspect_module(path).facts["accelerator"]


def test_float_models_are_refused_to_the_accelerator_with_a_reason() -> None:
    report = report_of(small_net(1))
    assert not report["claimed"]
    assert {entry["reason"] for entry in report["refused"]} == {
        "it computes in float: quantize the model for this target"
    }


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_parts_that_the_processor_computes_between(dtype: str) -> None:
    """Two segments, with a normalization between them, and a result of the first that both need."""
    graph = QuantizedGraph(3, dtype)
    x = graph.input(1, 8, 6, 6)
    one = graph.rounded(graph.node("Conv", [x, graph.weight((8, 8, 3, 3), 0)], pads=[1] * 4))
    between = graph.rounded(graph.node("LRN", [one], size=3))
    two = graph.rounded(graph.node("Add", [one, between]))
    model = graph.model(two)
    module = compiler.compile(model, DEFAULT, threads=1, records=False)
    report: Any = module.manifest.target.details["partition"]
    assert report["segments"] == 2
    assert report["operators"] == {"accelerator": 2, "processor": {"lrn": 1}, "share": 2 / 3}
    assert [entry["operator"] for entry in report["refused"]] == ["lrn"]
    inputs = random_inputs(model)
    (actual,), (wanted,) = (
        built.run(inputs).values() for built in (module, compiler.compile(model, "host", threads=1, records=False))
    )
    step = np.diff(np.unique(wanted)).min()
    assert np.abs(actual - wanted).max() <= 2.01 * step
    assert len(np.unique(wanted)) > 20


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (
            lambda g: g.node("Conv", [g.input(1, 4, 9, 9), g.weight((4, 1, 3, 3), 0)], strides=[4, 4], group=4),
            "strides",
        ),
        (lambda g: g.node("Conv", [g.input(1, 130, 9, 9), g.weight((65, 2, 3, 3), 0)], group=65), "65 groups"),
        (lambda g: g.node("Conv", [g.input(1, 1, 70, 3), g.weight((4, 1, 65, 1), 0)]), "65x1"),
        (lambda g: g.node("CumSum", [g.input(1, 9), g.constant(np.int64(1))]), "no such operator"),
        (lambda g: g.node("Softmax", [g.input(1, 70_000)]), "65536"),
        (lambda g: g.node("MaxPool", [g.input(1, 4, 9, 9)], kernel_shape=[2, 2], strides=[4, 4]), "strides"),
    ],
)
def test_refusals_name_the_reason(build: Any, reason: str) -> None:
    graph = QuantizedGraph(0)
    found, plan = planned(graph.model(graph.rounded(build(graph))))
    assert not plan.parts
    assert len(found.refused) == 1
    assert reason in found.refused[0][1]


def test_without_vela(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise targets.ToolchainMissing("ethos-u-vela is not installed", install_command("ethos-u"))

    monkeypatch.setattr("targets.ethos_u.partition.require", missing)
    with pytest.raises(compiler.errors.ToolchainError, match="ethos-u-vela") as error:
        compiler.compile(quantized_net()[0], DEFAULT, threads=1, records=False)
    assert "pip install 'ethos-u-vela" in (error.value.hint or "")


def test_the_simulator_runs_what_vela_emitted() -> None:
    """One bit of the weights changed, another result; commands cut off, an error."""
    graph = QuantizedGraph(7)
    _, plan = planned(graph.model(graph.rounded(graph.node("Relu", [graph.input(1, 4, 3, 3)]))))
    (segment,) = plan.parts.values()
    operands = random_operands(segment)
    program = vela.compile_graph(segment.tosa, target_named().accelerator).program
    data = bytearray(program.to_bytes().tobytes())
    assert Program.from_bytes(bytes(data)) == program
    data[-1] ^= 255
    before, after = execute(program, operands)[0], execute(Program.from_bytes(bytes(data)), operands)[0]
    assert before.shape == after.shape
    with pytest.raises(ValueError, match="cut short"):
        Program.from_bytes(bytes(data[:-1]))
    with pytest.raises(ValueError, match="not a program"):
        Program.from_bytes(b"nothing")
