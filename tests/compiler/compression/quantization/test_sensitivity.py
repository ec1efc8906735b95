"""The switched module is the float model with all switches at 0 and the quantized one with all at 1."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

import compiler
from compiler.compression.quantization.affine import affine_for, quantize_weight
from compiler.compression.quantization.insertion import Numbers, insert_pairs
from compiler.compression.quantization.layers import find_layers, place
from compiler.compression.quantization.sensitivity import switched
from compiler.frontends.imported_model import TensorSpec
from compiler.frontends.source import import_model
from compiler.passes.pipeline import run_pipeline
from compiler.support.accuracy import fewest
from tests.compiler.compression.quantization.networks import chain_net, samples


def test_switches() -> None:
    imported = import_model(chain_net(3))
    model = replace(imported, mod=run_pipeline(imported.mod, until="canonicalize").mod)
    placement = place(find_layers(model.mod))
    numbers = Numbers(
        {site: affine_for(-3, 3, "uint8") for site in placement.sites},
        {layer.variable: quantize_weight(layer.weight, 1, per_channel=True) for layer in placement.layers},
        {},
    )
    spec = TensorSpec("switches", (3,), "float32")
    mod = switched(model.mod, placement, numbers)
    module = compiler.compile(replace(model, mod=mod, inputs=[*model.inputs, spec]), threads=1)
    sample = samples((4, 16), 1)[0]
    values = {flag: module.run({**sample, "switches": np.full(3, flag, np.float32)})["y"] for flag in (0, 1)}
    plain = compiler.compile(model, threads=1).run(sample)["y"]
    rounded = compiler.compile(replace(model, mod=insert_pairs(model.mod, placement, numbers)), threads=1)
    np.testing.assert_allclose(values[0], plain, atol=1e-5)
    np.testing.assert_allclose(values[1], rounded.run(sample)["y"], atol=1e-4)
    assert np.abs(values[0] - values[1]).max() > 1e-3


def test_fewest_finds_the_smallest_count_in_few_trials() -> None:
    for needed in range(1, 40):
        tried: list[int] = []

        def holds(count: int, needed: int = needed, tried: list[int] = tried) -> bool:
            tried.append(count)
            return count >= needed

        assert fewest(holds, 40) == needed
        assert len(tried) <= 12
    assert fewest(lambda _: False, 7) is None
