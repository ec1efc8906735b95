"""Embedding tables are stored as integers with one scale per row."""

from __future__ import annotations

import numpy as np
import pytest

import compiler
from tests.compiler.compression.quantization.networks import embedding_net
from tests.compiler.compression.quantization.test_quantize import onnxruntime_outputs, snr

ROWS, WIDTH = 300, 32
LOOK_UP, PRODUCT = "e", "y"
SAMPLES = [{"ids": np.arange(start, start + 300, 30).reshape(2, 5)} for start in range(0, 30, 6)]


# What the product reads has one scale for rows that differ a hundredfold in static integers, one a row in dynamic ones.
@pytest.mark.parametrize(("scheme", "least"), [("static-int8", 25), ("dynamic-int8", 35), ("weight-int8", 40)])
def test_rows_of_any_magnitude_are_near(scheme: str, least: float) -> None:
    net = embedding_net(ROWS, WIDTH)
    quantized = compiler.quantize(net, SAMPLES, scheme=scheme, threads=1)
    assert LOOK_UP in [layer.name for layer in quantized.report.layers if layer.integer]
    module = compiler.compile(quantized, threads=1)
    for start in (2, 17):
        unseen = {"ids": np.arange(start, start + 10).reshape(2, 5) * 25 % ROWS}
        assert snr(module.run(unseen)["y"], onnxruntime_outputs(net, unseen)) > least
    table = [parameter for parameter in module.manifest.parameters if parameter.nbytes >= ROWS * WIDTH]
    assert [each.nbytes for each in table] == [ROWS * WIDTH]


def test_a_table_can_stay_in_float() -> None:
    report = compiler.quantize(embedding_net(), SAMPLES, scheme="weight-int8", in_float=[LOOK_UP], threads=1).report
    assert [(layer.name, layer.reason) for layer in report.in_float] == [(LOOK_UP, "asked for")]


def test_small_tables_are_left_alone() -> None:
    report = compiler.quantize(embedding_net(10), [{"ids": SAMPLES[0]["ids"] % 10}], threads=1).report
    assert [layer.name for layer in report.layers] == [PRODUCT]
