"""Techniques preserve the function of the float model, and reduce the accuracy loss."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper

import compiler
import targets
from compiler.compression.quantization.affine import quantize_weight
from compiler.compression.quantization.calibration import Statistics
from compiler.compression.quantization.corrections import bias_correction, equalize, smooth, smoothing_factors
from compiler.compression.quantization.edit import main_bindings
from compiler.compression.quantization.layers import find_layers
from compiler.errors import OptionError
from compiler.frontends.imported_model import ImportedModel
from compiler.frontends.source import import_model
from compiler.passes.pipeline import run_pipeline
from schedules.instructions.dot_products.table import multiplies_bytes
from tests.compiler.compression.quantization.networks import chain_net, convolution_chain, samples
from tests.compiler.compression.quantization.test_quantize import onnxruntime_outputs, snr


def canonical(source: Any) -> ImportedModel:
    imported = import_model(source)
    return replace(imported, mod=run_pipeline(imported.mod, until="canonicalize").mod)


def assert_same_function(model: ImportedModel, mod: Any, shape: tuple[int, ...]) -> None:
    assert len(main_bindings(mod)) >= len(main_bindings(model.mod))
    sample = samples(shape, 1)[0]
    before = compiler.compile(model, threads=1).run(sample)["y"]
    after = compiler.compile(replace(model, mod=mod), threads=1).run(sample)["y"]
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4 * float(np.abs(before).max()))


def test_equalized_convolutions_compute_the_same_with_even_ranges() -> None:
    model = canonical(convolution_chain())
    graph = find_layers(model.mod)
    mod = equalize(model.mod, graph)
    assert_same_function(model, mod, (1, 4, 6, 6))
    before, after = (
        [np.abs(layer.weight).reshape(len(layer.weight), -1).max(axis=1) for layer in find_layers(each).layers[:2]]
        for each in (model.mod, mod)
    )
    # The filters of the first convolution differ a hundredfold; then they are as large as what the next reads them by.
    assert before[0].max() / before[0].min() > 50
    assert after[0].max() / after[0].min() < 0.3 * before[0].max() / before[0].min()


def test_smoothed_products_compute_the_same() -> None:
    model = canonical(chain_net(2))
    graph = find_layers(model.mod)
    statistics = {}
    for layer in graph.layers:
        statistics[layer.data] = Statistics(1)
        values = np.random.default_rng(0).standard_normal((64, 16)).astype(np.float32)
        values[:, 3] *= 50
        statistics[layer.data].add(values)
    factors = smoothing_factors(graph.layers[0], statistics[graph.layers[0].data])
    assert factors is not None
    assert factors.argmax() == 3
    assert_same_function(model, smooth(model.mod, graph.layers, statistics), (4, 16))


def test_even_channels_are_left_alone() -> None:
    model = canonical(chain_net(1))
    (layer,) = find_layers(model.mod).layers
    statistics = Statistics(1)
    statistics.add(np.random.default_rng(0).uniform(-1, 1, (64, 16)).astype(np.float32))
    assert smooth(model.mod, [layer], {layer.data: statistics}) is model.mod


@pytest.mark.parametrize("kind", ["matrix", "grouped"])
def test_corrected_biases_take_the_mean_error_away(kind: str) -> None:
    model = canonical(chain_net(1) if kind == "matrix" else convolution_chain(groups=2))
    layer = find_layers(model.mod).layers[0]
    weight = quantize_weight(layer.weight, layer.operator.filters, per_channel=False, bits=4)
    generator = np.random.default_rng(4)
    if kind == "matrix":
        values = generator.uniform(0, 3, (500, 16))
        error = (values @ (weight.dequantized() - layer.weight).astype(np.float64)).mean(axis=0)
        means = values.mean(axis=0)
    else:
        means = generator.uniform(0, 3, 4)
        change = (weight.dequantized() - layer.weight).astype(np.float64)
        half = change.shape[0] // 2  # filters of the first half read channels 0 and 1
        read = np.where(np.arange(change.shape[0])[:, None] < half, means[None, :2], means[None, 2:])
        error = (change.sum(axis=(2, 3)) * read).sum(axis=1)
    np.testing.assert_allclose(bias_correction(layer, weight, means), -error, rtol=1e-4, atol=1e-6)


def test_smoothing_helps_where_channels_are_uneven() -> None:
    net = chain_net(2)
    data = samples((4, 16), 4)
    for sample in data:
        sample["x"][:, 5] *= 200
    noise = {
        techniques: compiler.quantize(
            net, data, techniques=techniques, method="min-max", threads=1, max_drop=0.9, keep_slower=True
        )
        .report.layers[1]
        .noise
        for techniques in ((), ("smoothing",))
    }
    assert noise[()] is not None
    assert noise["smoothing",] is not None
    assert noise["smoothing",] > noise[()] + 3


def uneven_net() -> Any:
    """Two matmuls; the second reads an ineffective channel a thousand times as large as the others."""
    net = chain_net(2)
    first, second = (numpy_helper.to_array(each).copy() for each in net.graph.initializer)
    first[:, 0] *= 1000
    second[0] = 0
    for tensor, values in zip(net.graph.initializer, (first, second), strict=True):
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return net


@pytest.mark.skipif(not multiplies_bytes(targets.get("host").machine), reason="the processor multiplies no bytes")
def test_sensitive_layers_read_16_bits_before_they_go_back_to_float() -> None:
    net, data = uneven_net(), samples((4, 16), 4)
    options: Any = {"method": "min-max", "max_drop": 1e-3, "threads": 1}
    plain = compiler.quantize(net, data, **options).report
    assert len(plain.in_float) == 1
    quantized = compiler.quantize(net, data, techniques=("bias-correction", "int16"), **options)
    report = quantized.report
    assert not report.in_float
    assert report.drop <= 1e-3
    assert [layer.activations for layer in report.layers] == ["uint8", "int16"]
    assert f"int16: {report.layers[1].name}" in str(report)
    unseen = samples((4, 16), 1, seed=9)[0]
    got = compiler.compile(quantized, threads=1).run(unseen)["y"]
    assert snr(got, onnxruntime_outputs(net, unseen)) > 25


def test_16_bits_are_refused_where_they_are_slower() -> None:
    with pytest.raises(OptionError, match="no byte dot product"):
        compiler.quantize(chain_net(2), samples((4, 16), 1), techniques=("int16",), target="haswell", threads=1)
