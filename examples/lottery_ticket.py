"""Find a lottery ticket: a small part of a net's weights that trains as well as the whole net from the same start.

python -m examples.lottery_ticket             # needs the extras torch and dev
python -m examples.lottery_ticket --amount 0.9 --rounds 5

In each round the net is trained, its smallest weights are set to zero, and the others return to their values after the
first epoch ("rewinding", Frankle et al. 2019, arXiv:1903.01611). The same zeros with other initial weights show the
value of the start.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import tensorwright
from benchmarks.digits import Digits, DigitsCnn, accuracy, load_digits, train

_BATCH = 20  # images


@dataclass(frozen=True)
class Tickets:
    """Accuracy on the test images."""

    whole: float
    rewound: float
    anew: float


def find_ticket(data: Digits, amount: float = 0.85, rounds: int = 3, epochs: int = 4) -> Tickets:
    """Prune the fraction `amount` of the weights in `rounds`, rewinding before each training of `epochs`."""
    images = torch.from_numpy(data.train[0][:50])
    net = train(DigitsCnn(), data, epochs=1)
    early = copy.deepcopy(net.state_dict())
    _train_on(net, data, epochs)
    options: dict[str, Any] = {"example_inputs": (images,), "evaluate": accuracy(data), "threads": 1, "max_drop": 0.99}

    def pruned(first: dict[str, Any]) -> float:
        result = tensorwright.prune(
            copy.deepcopy(net),
            amount,
            pattern="elements",
            scope="global",
            steps=rounds,
            rewind=first,
            finetune=lambda module: _train_on(module, data, epochs),
            **options,
        )
        score: float | None = result.report.after.score
        assert score is not None
        return score

    torch.manual_seed(1)
    other = DigitsCnn()
    return Tickets(
        accuracy(data)(tensorwright.compile(net, example_inputs=(images,), threads=1).run),
        pruned(early),
        pruned(other.state_dict()),
    )


def _train_on(net: nn.Module, data: Digits, epochs: int) -> None:
    """Train the net further."""
    images: Any
    labels: Any
    images, labels = (torch.from_numpy(part) for part in data.train)
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, epochs * -(-len(labels) // _BATCH))
    net.train()
    for epoch in range(epochs):
        order: Any = torch.randperm(len(labels), generator=torch.Generator().manual_seed(epoch))
        for part in order.split(_BATCH):
            optimizer.zero_grad()
            loss: Any = nn.functional.cross_entropy(net(images[part]), labels[part])
            loss.backward()
            optimizer.step()
            schedule.step()
    net.eval()


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, prune, rewind, and print the accuracy of each net."""
    parser = argparse.ArgumentParser(prog="python -m examples.lottery_ticket", description=__doc__)
    parser.add_argument("--amount", type=float, default=0.85, help="fraction of weights to prune")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = find_ticket(load_digits(), options.amount, options.rounds, options.epochs)
    print(f"share of the test images recognized, all weights: {found.whole:.4f}")
    print(f"{1 - options.amount:.0%} of them, from the same start: {found.rewound:.4f}")
    print(f"the same number from another start: {found.anew:.4f}")


if __name__ == "__main__":
    main()
