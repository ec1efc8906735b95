"""`prune` on nets, with and without training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import compiler
from compiler.compression.pruning.dependencies import Cell
from compiler.compression.pruning.driver import compensated, factor
from compiler.compression.pruning.plan import masks, parse_pattern, select_units
from compiler.errors import AccuracyError, OptionError


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 16, 4),
    ).eval()  # fmt: skip


_X = torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(0))
_OPTIONS: dict[str, Any] = {"example_inputs": (_X,), "threads": 1}


def _outputs(source: object, **options: Any) -> np.ndarray:
    module = compiler.compile(source, threads=1, **options)
    return next(iter(module.run({module.inputs[0].name: _X.numpy()}).values()))


def _train(net: nn.Module) -> None:
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2, weight_decay=0.1)
    net.train()
    for _ in range(3):
        optimizer.zero_grad()
        loss: Any = nn.functional.mse_loss(net(_X), torch.ones(6, 4))
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("criterion", ["magnitude", "gradient", "second-order"])
def test_channels_while_training(criterion: str) -> None:
    """The smaller graph equals the module with active masks."""
    net = _net()
    pruned = compiler.prune(
        net, 0.5, criterion=criterion, steps=2, finetune=_train, loss=lambda net: net(_X).square().mean(), **_OPTIONS
    )
    with torch.no_grad():
        wanted = net(_X).numpy()
    got = _outputs(pruned)
    assert np.abs(got - wanted).max() < 1e-4
    parameters: dict[str, Any] = dict(net.named_parameters())
    first, second = parameters["0.weight"], parameters["3.weight"]
    assert int((first.flatten(1).abs().sum(1) == 0).sum()) == int((second.flatten(1).abs().sum(1) == 0).sum()) == 16
    assert pruned.report.after.bytes < pruned.report.before.bytes / 1.8


def test_elements_while_training_and_rewinding() -> None:
    net = _net()
    start = {name: value.clone() for name, value in net.state_dict().items()}
    pruned = compiler.prune(net, 0.75, pattern="elements", steps=2, rewind=start, **_OPTIONS)
    parameters: dict[str, Any] = dict(net.named_parameters())
    weight, before = parameters["3.weight"].detach().numpy(), start["3.weight"].numpy()
    assert np.count_nonzero(weight) == round(0.25 * weight.size)
    assert np.array_equal(weight[weight != 0], before[weight != 0])
    assert np.abs(_outputs(pruned) - net(_X).detach().numpy()).max() < 1e-5


def test_second_order_loses_less_than_magnitude() -> None:
    net = _net()
    exact = _outputs(net, example_inputs=(_X,))
    # Inputs that depend on each other, so that weights can make up for others.
    samples = [{"input": _X.numpy()}]
    losses = []
    for criterion in ("magnitude", "second-order"):
        pruned = compiler.prune(net, pattern="2:4", criterion=criterion, calibration=samples, max_drop=0.99, **_OPTIONS)
        losses.append(np.square(_outputs(pruned) - exact).mean())
    assert losses[1] < 0.7 * losses[0]


@pytest.mark.parametrize(("amount", "skipped"), [(0.8, "kernels skip zeros"), (0.05, "no kernel skips zeros")])
def test_the_report_says_whether_kernels_skip_zeros(amount: float, skipped: str) -> None:
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64)).eval()
    example = torch.randn(8, 64)
    pruned = compiler.prune(net, amount, pattern="16x1", max_drop=0.99, example_inputs=(example,), threads=1)
    assert skipped in pruned.report.notes[0]
    assert (pruned.report.after.bytes < pruned.report.before.bytes / 2) == (amount > 0.5)


def test_the_limit() -> None:
    net = _net()
    with pytest.raises(AccuracyError, match="does not hold"):
        compiler.prune(net, 0.9, pattern="elements", calibration=[{"input": _X.numpy()}], max_drop=1e-4, **_OPTIONS)
    found = compiler.prune(
        net, None, pattern="elements", calibration=[{"input": _X.numpy()}], max_drop=0.02, **_OPTIONS
    )
    assert found.report.drop is not None
    assert found.report.drop <= 0.02
    assert found.report.settings["amount"] >= 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"amount": 1.5}, "amount=1.5"),
        ({"pattern": "4:2"}, "pattern='4:2'"),
        ({"criterion": "luck"}, "criterion='luck'"),
        ({"criterion": "gradient"}, "needs loss="),
        ({"criterion": "second-order"}, "needs loss="),
        ({"steps": 3}, "finetune="),
        ({"amount": None}, "needs a measure"),
        ({"pattern": "heads"}, "no heads"),
        ({"pattern": "1:99999"}, "removes nothing"),
        ({"pattern": "elements", "amount": 1e-9}, "removes nothing"),
    ],
)
def test_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        compiler.prune(_net(), **{**_OPTIONS, **options})


def test_patterns() -> None:
    generator = np.random.default_rng(0)
    values = [generator.random((5, 11)), generator.random((8, 6)) * 100]
    kept = masks(parse_pattern("2:4"), values, 0.5, "layer")
    assert (kept[0][:, :8].reshape(5, 2, 4).sum(2) == 2).all()
    assert kept[0][:, 8:].all()
    blocks = masks(parse_pattern("4x2"), values, 0.5, "layer")[1]
    assert (blocks.reshape(2, 4, 3, 2).sum((1, 3)) % 8 == 0).all()
    assert blocks.sum() == 24
    # A block that is larger than the weight is the weight.
    whole = masks(parse_pattern("99999999999x99999999999"), values, 0.5, "global")
    assert [each.any() for each in whole] == [each.all() for each in whole] == [False, True]
    everywhere = masks(parse_pattern("elements"), values, 0.5, "global")
    assert sum(int((~mask).sum()) for mask in everywhere) == round(0.5 * (55 + 48))
    assert (~everywhere[0]).sum() > 40  # the second weight's costs are larger


def test_units_fill_vectors() -> None:
    cell = Cell("a", np.arange(1, 41), 1, "channels")
    scores = np.arange(41.0)
    removed = select_units([cell], scores, 0.5, "layer", 16)
    assert removed.sum() == 8  # 20 would stay; 32 do
    assert removed[1:9].all()
    assert select_units([cell], scores, 0.7, "layer", 16).sum() == 40 - 16
    small = Cell("b", np.arange(1, 7), 1, "channels")
    assert select_units([small], scores[:7], 0.5, "layer", 16).sum() == 3


def test_compensation_is_least_squares_for_the_last_weights() -> None:
    generator = np.random.default_rng(0)
    inputs = generator.standard_normal((200, 6)) + generator.standard_normal((200, 1))
    matrix = generator.standard_normal((3, 6))
    kept = np.ones((3, 6), bool)
    kept[:, 0] = False
    changed = compensated(matrix, kept, factor(inputs.T @ inputs * 1.0))
    best = np.linalg.lstsq(inputs[:, 1:], inputs @ matrix.T, rcond=None)[0].T
    error = np.square(inputs @ (changed - matrix).T).sum()
    least = np.square(inputs[:, 1:] @ best.T - inputs @ matrix.T).sum()
    assert (changed[:, 0] == 0).all()
    assert least <= error < 1.1 * least
