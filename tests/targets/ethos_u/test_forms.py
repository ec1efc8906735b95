"""Other forms of a step: the same bytes, in the reference model, in the simulator and in a module."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import compiler
from compiler.frontends.source import import_model
from compiler.records.identity import model_fingerprint, target_description
from compiler.records.records import ModelLine, RecordWriter
from targets.ethos_u.partition import find
from targets.ethos_u.segments import one_segment
from targets.ethos_u.settings import step_name
from targets.ethos_u.steps import Step
from targets.ethos_u.vela import compile_graph
from targets.ethos_u.view import View
from targets.measure import Setting
from tests.targets.ethos_u.checking import canonical, check, random_operands, reference, target_named
from tests.targets.ethos_u.graphs import QuantizedGraph


def steps_of(model: onnx.ModelProto) -> list[Step]:
    return list(find(View(canonical(model)), target_named().accelerator).steps.values())


def convolution(seed: int, shape: tuple[int, ...], weight: tuple[int, ...], **attributes: Any) -> onnx.ModelProto:
    graph = QuantizedGraph(seed)
    bias = graph.constant(graph.rng.normal(size=weight[0]).astype(np.float32))
    x, w = graph.input(*shape), graph.weight(weight, 0)
    return graph.model(graph.rounded(graph.node("Conv", [x, w, bias], **attributes), scale=0.5))


def mean(seed: int, *shape: int) -> onnx.ModelProto:
    graph = QuantizedGraph(seed)
    return graph.model(graph.rounded(graph.node("GlobalAveragePool", [graph.input(*shape)]), scale=0.01, zero=3))


def total(seed: int, *shape: int) -> onnx.ModelProto:
    graph = QuantizedGraph(seed)
    return graph.model(graph.rounded(graph.node("Add", [graph.input(*shape), graph.input(*shape)])))


def product(seed: int, depth: int, filters: int) -> onnx.ModelProto:
    graph = QuantizedGraph(seed)
    x, weight = graph.input(1, depth), graph.weight((depth, filters), 1)
    return graph.model(graph.rounded(graph.node("MatMul", [x, weight]), scale=0.5))


MODELS = {
    "strided": convolution(0, (1, 3, 12, 12), (8, 3, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1]),
    "same": convolution(1, (1, 16, 5, 6), (8, 16, 3, 3), pads=[1, 1, 1, 1]),
    "valid": convolution(2, (1, 2, 9, 12), (4, 2, 4, 5), strides=[2, 2]),
    "uneven padding": convolution(3, (1, 1, 7, 10), (8, 1, 5, 4), strides=[2, 2], pads=[2, 1, 2, 2]),
    "dilated": convolution(4, (1, 3, 11, 12), (4, 3, 3, 3), dilations=[2, 2], pads=[2, 2, 2, 2]),
    "without the end": convolution(11, (1, 16, 6, 4), (3, 16, 4, 3), strides=[1, 3], pads=[2, 1, 0, 0]),
    "pointwise": convolution(5, (1, 48, 3, 5), (8, 48, 1, 1)),
    "sequence": convolution(6, (1, 4, 16), (8, 4, 3), strides=[2], pads=[1, 1]),
    "mean": mean(7, 1, 24, 3, 3),
    "mean of many": mean(8, 1, 16, 13, 7),
    "sum": total(9, 1, 24, 4, 6),
    "product": product(10, 112, 16),
}


@pytest.mark.parametrize("name", MODELS)
def test_forms_compute_the_same_bytes(name: str) -> None:
    (step,) = steps_of(MODELS[name])
    segment = one_segment([step])
    operands = random_operands(segment)
    (wanted,) = reference(segment, operands)
    forms = {form: each for form, each in step.forms.items() if each.arrangement is None}
    assert bool(forms) == (name != "dilated")
    for form in forms:
        written = one_segment([step.in_form(form)])
        (actual,) = reference(written, operands)
        np.testing.assert_array_equal(actual, wanted, err_msg=form)
    for form in list(forms)[:1]:
        check(one_segment([step.in_form(form)]))


@pytest.mark.parametrize("name", ["strided", "uneven padding", "dilated"])
def test_images_that_the_processor_arranges_give_the_same_module(name: str, tmp_path: Any) -> None:
    """Through a record, as `compile` takes it."""
    model, target = MODELS[name], target_named()
    (step,) = steps_of(model)
    forms = [form for form, each in step.forms.items() if each.arrangement is not None]
    assert forms
    feeds = {"x0": np.random.default_rng(0).normal(size=tuple(step.inputs[0].shape)).astype(np.float32)}
    (wanted,) = compiler.compile(model, target, threads=1, records=False).run(feeds).values()
    key = model_fingerprint(import_model(model).mod, "float32")
    measurer = target.measurer()
    for form in (forms[0], forms[-1]):
        with RecordWriter(tmp_path / f"{form}.jsonl", target_description(target)) as writer:
            chosen: dict[str, Setting] = {step_name(0, step): form}
            writer.append(ModelLine(target=writer.target, model=key, settings=chosen, measure=measurer.measure()))
        module = compiler.compile(model, target, threads=1, records=writer.path)
        partition: Any = module.manifest.target.details["partition"]
        assert partition["settings"] == chosen
        (described,) = partition["tensors"]["inputs"]
        assert "columns of the zero point before each row" in described["arrangement"]
        (actual,) = module.run(feeds).values()
        np.testing.assert_array_equal(actual, wanted, err_msg=form)


def test_a_sum_of_equal_scales_is_one_operator() -> None:
    graph = QuantizedGraph(11)
    operands = [graph.rounded(graph.input(1, 16, 8, 8), 0.05, zero) for zero in (3, -7)]
    model = graph.model(graph.rounded(graph.node("Add", operands), 0.07, 5))
    segment = one_segment(steps_of(model)[-1:])
    check(segment)
    layers = compile_graph(segment.tosa, target_named().accelerator).layers
    assert [layer["Original Operator"] for layer in layers] == ["Add"]
