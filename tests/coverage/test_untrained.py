"""Outputs of the catalog's untrained nets depend on every layer: a small error in one shows in the result."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from benchmarks.catalog import CATALOG, inputs_for
from tests.coverage.models import relative_error

_ERROR = 1e-3  # relative change of the weights of one layer
_TOLERANCE = 1e-4  # tolerance of the catalog's check


def disturbed(weights: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    noise = np.random.default_rng(0).standard_normal(weights.shape, dtype=np.float32)
    return weights * (1 + np.float32(_ERROR) * noise)


@pytest.mark.parametrize("name", ["mobilenet_v3_large", "efficientnet_b0"])
def test_a_small_error_in_a_layer_of_a_torch_net_is_seen(name: str) -> None:
    net = CATALOG[name].load()
    values = torch.from_numpy(inputs_for(CATALOG[name])["x"])
    layers = [each for each in net.modules() if isinstance(each, torch.nn.Conv2d)]
    with torch.no_grad():
        right = net(values).numpy()
        weight = layers[len(layers) // 2].weight
        weight.copy_(torch.from_numpy(disturbed(weight.numpy())))
        wrong = net(values).numpy()
    assert relative_error(wrong, right) > _TOLERANCE


@pytest.mark.parametrize("name", ["light-squeezenet", "light-shufflenet"])
def test_a_small_error_in_a_layer_of_an_onnx_net_is_seen(name: str) -> None:
    model = CATALOG[name].load()
    right = _run(model, name)
    layers = [node.input[1] for node in model.graph.node if node.op_type == "Conv"]
    chosen = next(each for each in model.graph.initializer if each.name == layers[len(layers) // 2])
    chosen.CopyFrom(numpy_helper.from_array(disturbed(numpy_helper.to_array(chosen)), chosen.name))
    assert relative_error(_run(model, name), right) > _TOLERANCE


def _run(model: Any, name: str) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: np.ndarray[Any, Any] = session.run(None, inputs_for(CATALOG[name]))[0]
    return result
