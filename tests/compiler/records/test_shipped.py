"""`compile` uses the shipped records by default for each target that has some."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import compiler
import targets
from benchmarks._tuner_samples import workload_of
from benchmarks.tiny_nets import quantized_by_onnx_runtime
from compiler.records.folders import shipped_folder
from compiler.records.identity import file_name, target_description
from compiler.records.library import TunedConfigs, read_current
from compiler.records.records import Loaded
from schedules.gpu import gpu_rules
from schedules.rule import ScheduleRule
from schedules.selection.registry import rules

MODELLED = ("raspberry-pi-4", "raspberry-pi-5", "graviton3", "h100")
CARD = {"resnet18", "resnet50", "mobilenet_v2", "vit_b_16", "minilm-128"}


def _shipped(target: targets.Target) -> Loaded:
    return read_current(shipped_folder() / file_name(target_description(target)))


def _convolution(channels: int, filters: int, kernel: int, size: int) -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.full((filters, channels, kernel, kernel), 0.01, np.float32), "w")
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[kernel // 2] * 4)
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, channels, size, size))
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "convolution", [given], [result], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_a_model_with_a_known_layer_takes_its_config() -> None:
    """Records for a model that was never tuned; the manifest names the file, and the measure by which each won."""
    module = compiler.compile(_convolution(256, 1024, 1, 14), "h100", threads=None)
    kernels = {each.measure: each for each in module.manifest.kernels if each.source == "record"}
    assert set(kernels) == {"nvcc model sm_90"}
    name = file_name(target_description(targets.get("h100")))
    assert kernels["nvcc model sm_90"].origin == f"tuning_logs/{name}"


@pytest.mark.parametrize("name", MODELLED)
def test_what_was_chosen_for_a_model_still_applies(name: str) -> None:
    """A config that its rule no longer has, or that beat an outdated default, would be ignored silently."""
    target = targets.get(name)
    loaded = _shipped(target)
    measurer = target.measurer()
    assert measurer is not None
    assert not loaded.problems
    assert {line.name for line in loaded.models} == CARD
    assert all(measurer.fits(line.measure) for line in loaded.models)
    by_name: dict[str, ScheduleRule[Any]] = {rule.name: rule for rule in (*rules(), *gpu_rules())}
    for line, chosen in ((model, each) for model in loaded.models for each in model.choices):
        rule_and_version, _, key = (chosen.way or chosen.task).partition("/")
        rule, workload = by_name[rule_and_version.partition("@")[0]], workload_of(key)
        assert workload is not None
        tuned = TunedConfigs(target, loaded, line.model)
        assert tuned(rule, workload) is not None, (line.name, chosen)
        assert tuned.measure(chosen.kernel) == line.measure.name


@pytest.mark.parametrize("accelerator", ["u55-128", "u65-256"])
def test_a_tiny_net_takes_its_settings(accelerator: str) -> None:
    """Settings are found by the graph, independent of weights."""
    model = quantized_by_onnx_runtime("ds_cnn")
    module = compiler.compile(model, targets.get(f"cortex-m55+ethos-{accelerator}", cores=1), threads=1)
    partition: Any = module.manifest.target.details["partition"]
    assert partition["measure"] == f"vela cycles ethos-{accelerator}"
    assert partition["settings"]["9 mean 1x64x25x5"] == "channels in columns"
