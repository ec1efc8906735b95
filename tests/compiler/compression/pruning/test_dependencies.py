"""Structured pruning: dependent channels, and equality of the smaller graph with the masked one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import compiler
from benchmarks.digits import DigitsTransformer
from compiler.compression.model import canonical
from compiler.compression.pruning.axes import Nodes, factor_groups
from compiler.compression.pruning.dependencies import find_dependencies
from compiler.compression.pruning.shrink import shrink
from compiler.driver.compile import find_target
from compiler.frontends.source import import_model
from compiler.passes.rewriting.matching import array_of
from tests.compiler.compression.pruning.networks import Tangle, masked, random_removal


def _check(net: nn.Module, shape: tuple[int, ...], kinds: tuple[str, ...], share: float = 0.5) -> Any:
    """Check that the shrunk module equals the masked one but not the original; return the dependencies."""
    torch.manual_seed(0)
    example = torch.randn(*shape)
    model = canonical(import_model(net.eval(), example_inputs=(example,)), find_target("host"))
    found = find_dependencies(model.mod)
    removed = random_removal(found, share, kinds=kinds)
    assert removed.any()
    modules = [
        compiler.compile(replace(model, mod=mod), threads=1, records=False)
        for mod in (masked(found, removed), shrink(found, removed))
    ]
    inputs = {model.inputs[0].name: example.numpy()}
    wanted, got = (next(iter(module.run(inputs).values())) for module in modules)
    with torch.no_grad():
        whole = net(example).numpy()
    scale = np.abs(wanted).max()
    assert np.abs(got - wanted).max() <= 1e-5 * scale
    assert np.abs(whole - wanted).max() > 1e-3 * scale
    left = find_dependencies(shrink(found, removed)).constants
    assert sum(array_of(each).size for each in left) < sum(array_of(each).size for each in found.constants)
    return found


def test_all_kinds_of_paths() -> None:
    found = _check(Tangle(), (2, 3, 8, 8), ("channels",))
    # A group of the grouped convolution goes as one, and takes the stem, the depthwise layer and the gate with it.
    assert sorted(len(cell.units) for cell in found.cells) == [4, 4, 5, 6, 7]


def test_heads_and_inner_channels_of_a_transformer() -> None:
    found = _check(DigitsTransformer(width=24, depth=1, heads=3), (2, 1, 16, 16), ("heads", "channels"), 0.4)
    assert sorted((cell.kind, len(cell.units)) for cell in found.cells) == [("channels", 96), ("heads", 3)]


def test_outputs_and_normalized_channels_stay() -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 4))
    model = import_model(net.eval(), example_inputs=(torch.randn(2, 6),))
    assert find_dependencies(model.mod).cells == ()
    with pytest.raises(compiler.errors.OptionError, match="no channels that can be removed"):
        compiler.prune(net, example_inputs=(torch.randn(2, 6),))


@pytest.mark.parametrize(
    ("before", "after", "groups"),
    [
        ((2, 6, 4), (2, 2, 3, 4), [([0], [0]), ([1], [1, 2]), ([2], [3])]),
        ((5, 2, 3), (5, 6), [([0], [0]), ([1, 2], [1])]),
        (("n", 12), ("n", 3, 4), [([0], [0]), ([1], [1, 2])]),
        ((7,), (1, 7, 1), [([0], [0, 1]), ([], [2])]),
        (("n", 4), ("n*4",), [([0, 1], [0])]),
    ],
)
def test_groups_of_factors(before: tuple[object, ...], after: tuple[object, ...], groups: object) -> None:
    assert factor_groups(before, after) == groups


def test_union_of_random_pairs_equals_a_plain_one() -> None:
    generator = np.random.default_rng(1)
    nodes = Nodes()
    first = nodes.fresh(60)
    left, right = generator.choice(first, 40), generator.choice(first, 40)
    nodes.unite(left[:20], right[:20])
    nodes.roots()
    nodes.unite(left[20:], right[20:])
    parents = list(range(61))

    def root(each: int) -> int:
        return each if parents[each] == each else root(parents[each])

    for a, b in zip(left, right, strict=True):
        a, b = root(int(a)), root(int(b))
        parents[max(a, b)] = min(a, b)
    assert nodes.roots().tolist() == [root(each) for each in range(61)]
