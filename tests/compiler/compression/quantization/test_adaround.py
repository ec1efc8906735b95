"""AdaRound compared with rounding to nearest, GPTQ and, if feasible, all possible roundings."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import compiler
from compiler.compression.quantization.layers import Layer, find_layers
from compiler.compression.quantization.rounding import (
    GramMatrices,
    as_columns,
    from_columns,
    group_scales,
    levels,
    rounded_by_adaround,
    rounded_by_gptq,
)
from compiler.frontends.source import import_model
from tests.compiler.compression.quantization.networks import chain_net, residual_net, samples
from tests.compiler.compression.quantization.test_techniques import canonical

Array = NDArray[Any]


def correlated(depth: int, seed: int = 0) -> Array:
    """Gram matrix of positive data with fewer directions than channels."""
    generator = np.random.default_rng(seed)
    mixing = generator.standard_normal((depth // 4 + 1, depth))
    data = np.maximum(generator.standard_normal((500, depth // 4 + 1)) @ mixing, 0)
    data += 0.1 * generator.standard_normal(data.shape)
    return (data.T @ data).astype(np.float32)


def error(gram: Array, change: Array) -> float:
    return float(np.einsum("kj,kj->", change, gram @ change))


@pytest.mark.parametrize("bits", [4, 8])
def test_products_change_less_than_by_gptq(bits: int) -> None:
    weight = np.random.default_rng(1).standard_normal((96, 20)).astype(np.float32)
    gram, most = correlated(96), 2 ** (bits - 1)
    scale = group_scales(weight, bits, "float32")
    nearest = error(gram, levels(weight, scale, bits) * scale - weight)
    values, scales = rounded_by_gptq(weight, gram, 96, bits, "float32")
    by_gptq = error(gram, values * scales - weight)
    found = rounded_by_adaround(weight[None], scale, gram[None], -most, most - 1)[0]
    assert error(gram, found * scale - weight) < 0.95 * by_gptq < 0.5 * nearest


@pytest.mark.parametrize("seed", range(4))
def test_it_is_near_the_best_of_all_roundings(seed: int) -> None:
    generator = np.random.default_rng(seed)
    weight, gram = generator.uniform(-3, 3, (8, 1)).astype(np.float32), correlated(8, seed)
    ways = np.array(list(itertools.product((0, 1), repeat=8))) + np.floor(weight.ravel())
    errors = [error(gram, (way - weight.ravel())[:, None]) for way in ways]
    found = rounded_by_adaround(weight[None], np.ones(1), gram[None], -8, 7)[0]
    better = sum(each < error(gram, found - weight) for each in errors)
    assert better <= len(errors) // 16


def test_it_stays_within_the_limits_and_goes_on_without_data() -> None:
    weight = np.array([[[9.0], [-9.0], [0.4]]], np.float32)
    gram = np.zeros((1, 3, 3), np.float32)
    assert rounded_by_adaround(weight, np.ones(1), gram, -8, 7).ravel().tolist() == [7, -8, 0]


def layers_of(net: Any) -> list[Layer]:
    return find_layers(canonical(net).mod).layers


@pytest.mark.parametrize(
    ("channels", "filters", "groups", "stride", "padding", "dilation"),
    [(3, 4, 1, 1, 1, 1), (4, 6, 2, 2, 0, 1), (5, 5, 5, 1, 2, 2), (2, 3, 1, 3, 1, 1)],
)
def test_squares_of_convolutions_give_the_energy_of_their_results(
    channels: int, filters: int, groups: int, stride: int, padding: int, dilation: int
) -> None:
    torch.manual_seed(channels)
    net = torch.nn.Conv2d(channels, filters, 3, stride, padding, dilation, groups, bias=False)
    data = torch.randn(2, channels, 11, 9)
    (layer,) = find_layers(import_model(net.eval(), example_inputs=(data,)).mod).layers
    sums = GramMatrices([layer])
    sums.add({layer.data: data.numpy()})
    gram = sums.of(layer)
    assert gram is not None
    columns = as_columns(layer, layer.weight)
    energy = float(np.einsum("gkj,gkj->", columns, gram @ columns, dtype=np.float64))
    assert energy == pytest.approx(float((net(data).detach() ** 2).sum()), rel=1e-4)
    np.testing.assert_array_equal(from_columns(layer, columns), layer.weight)


@pytest.mark.parametrize(("net", "shape"), [(residual_net(), (2, 8, 6, 6)), (chain_net(2, 48), (4, 48))])
def test_static_integers_lose_less(net: Any, shape: tuple[int, ...]) -> None:
    data = samples(shape, 8)
    before, after = (
        compiler.quantize(net, data, techniques=each, threads=1).report.layers[0].noise for each in ((), ("adaround",))
    )
    assert before is not None
    assert after is not None
    assert after > before


def test_it_takes_the_place_of_gptq_for_weights_alone() -> None:
    data = samples((4, 48), 8)
    noise = {}
    for techniques in ((), ("gptq",), ("gptq", "adaround")):
        report = compiler.quantize(
            chain_net(1, 48), data, scheme="weight-int4", techniques=techniques, max_drop=0.5, threads=1
        ).report
        assert report.techniques == techniques[-1:]
        noise[techniques] = report.drop
    assert noise["gptq", "adaround"] < noise["gptq",] < noise[()]
