"""Vela's output, run by the simulator, against the TOSA reference model, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import tosa_reference_model

import targets
from compiler.frontends.source import import_model
from compiler.passes.context import PipelineContext
from compiler.passes.pipeline import run_pipeline
from targets.ethos_u.layout import channels_first
from targets.ethos_u.partition import Found, find, prepared
from targets.ethos_u.runtime import execute
from targets.ethos_u.segments import Schedule, Segment, schedule
from targets.ethos_u.target import EthosU
from targets.ethos_u.vela import compile_graph
from targets.ethos_u.view import View

Array = np.ndarray[Any, Any]
DEFAULT = "cortex-m55+ethos-u55-128"


def target_named(name: str = DEFAULT) -> EthosU:
    found = targets.get(name, cores=1)
    assert isinstance(found, EthosU)
    return found


def canonical(source: Any, name: str = DEFAULT) -> Any:
    """The function of a model (of ONNX, or imported) as the partitioner sees it."""
    target = target_named(name)
    mod = import_model(source).mod if isinstance(source, onnx.ModelProto) else source.mod
    context = PipelineContext(target=target, machine=target.machine)
    return prepared(run_pipeline(mod, context, until="canonicalize").mod)


def planned(source: Any, name: str = DEFAULT) -> tuple[Found, Schedule]:
    """The part of a model (ONNX, or imported) that the target takes, and its segments."""
    mod = canonical(source, name)
    view = View(mod)
    found = find(view, target_named(name).accelerator)
    return found, schedule(view, found.steps, view.results)


def off_by(model: onnx.ModelProto, name: str = DEFAULT) -> float:
    """Largest distance of the reference model from ONNX Runtime, in steps of the result, for a model of one segment."""
    view = View(canonical(model, name))
    (segment,) = schedule(view, find(view, target_named(name).accelerator).steps, view.results).parts.values()
    operands = random_operands(segment)
    feeds = {}
    for port, operand in zip(segment.inputs, operands, strict=True):
        whole = operand.transpose(channels_first(operand.ndim)) if port.last else operand
        quantize = view.definition(port.tensor.variable)
        feeds[str(quantize.args[0].name)] = ((whole.astype(np.float64) - port.tensor.zero) * port.tensor.scale).astype(
            np.float32
        )
    options = onnxruntime.SessionOptions()
    # Optimized, version 1.32 rounds a bias to steps of the sums in 32 bits, and loses those that these do not hold.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    (wanted,) = onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, feeds)
    (port,), (actual,) = segment.outputs, reference(segment, operands)
    whole = actual.transpose(channels_first(actual.ndim)) if port.last else actual
    return float(np.abs((whole.astype(np.float64) - port.tensor.zero) - wanted / port.tensor.scale).max())


def random_operands(segment: Segment, seed: int = 0) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.integers(-128, 128, port.shape).astype(np.int8) for port in segment.inputs]


def reference(segment: Segment, operands: list[Array]) -> list[Array]:
    """By the TOSA reference model."""
    results, status = tosa_reference_model.run(segment.tosa, operands, verbosity="NONE")
    assert status == tosa_reference_model.GraphStatus.TOSA_VALID
    return [np.asarray(result) for result in results]


def check(segment: Segment, name: str = DEFAULT) -> list[Array]:
    """Compile and run a segment on random operands; every bit of its results is right, and none is constant."""
    operands = random_operands(segment)
    expected = reference(segment, operands)
    program = compile_graph(segment.tosa, target_named(name).accelerator).program
    if not target_named(name).accelerator.is_u85:
        for actual, wanted in zip(execute(program, operands), expected, strict=True):
            np.testing.assert_array_equal(actual, wanted.ravel())
    for wanted in expected:
        assert wanted.size == 1 or len(np.unique(wanted)) > 1
    return expected
