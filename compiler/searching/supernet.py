"""Once-for-all training: the largest net, the smallest and two random ones share each batch (the sandwich rule, Yu and
Huang 2019), and all but the largest learn from its outputs (in-place distillation)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from random import Random
from typing import Any

import torch

from compiler.compression.distillation_losses import response
from compiler.errors import InputError, OptionError
from compiler.searching.choice import select
from compiler.searching.eager import computed
from compiler.searching.knobs import Config, largest, sampled, smallest
from compiler.searching.settings import SearchOptions
from compiler.searching.torch_net import TorchNet

_RANDOM = 2
_TEMPERATURE = 1.0


def train_shared(work: TorchNet, options: SearchOptions, report: Callable[[str], None]) -> None:
    """Train the net's weights for all of its sub-nets.

    Raises:
        InputError, OptionError: the batches are at fault, or the loss is not finite.
    """
    random = Random(options.seed)
    knobs = [knob for knob in work.knobs if knob.kind != "precision"]
    optimizer = torch.optim.Adam(work.net.parameters(), options.learning_rate)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        for epoch in range(options.epochs):
            report(f"train the shared weights: epoch {epoch + 1} of {options.epochs}")
            work.net.train()
            for inputs, labels in pairs_of(options.batches):
                optimizer.zero_grad()
                wanted = _largest(work, largest(knobs), inputs, labels, options)
                others: list[Config] = [smallest(knobs), *(sampled(knobs, random) for _ in range(_RANDOM))]
                for config in others:
                    select(work.net, config)
                    outputs = computed(work.net, work.sub_net(config), inputs)
                    response(outputs, wanted, _TEMPERATURE).backward()
                optimizer.step()
    work.net.eval()


def _largest(work: TorchNet, config: Config, inputs: list[Any], labels: Any, options: SearchOptions) -> Any:
    """Train the largest net by the task; its outputs, without gradients."""
    if labels is None:
        raise InputError("batches= has no labels", "give pairs (inputs, labels): the shared weights learn from them")
    select(work.net, config)
    outputs = computed(work.net, work.sub_net(config), inputs)
    task = options.task or torch.nn.functional.cross_entropy
    loss = task(outputs, labels)
    if not torch.isfinite(loss):
        raise OptionError(f"the loss is {float(loss)} in training", "give a smaller learning_rate=")
    loss.backward()
    return outputs.detach()


def pairs_of(batches: Iterable[Any] | None) -> Iterator[tuple[list[Any], Any]]:
    """(inputs, labels) of each batch. Raises InputError where there is none."""
    count = 0
    for batch in batches or ():
        count += 1
        inputs, labels = batch if isinstance(batch, tuple | list) and len(batch) == 2 else (batch, None)
        yield (list(inputs) if isinstance(inputs, tuple | list) else [inputs]), labels
    if not count:
        raise InputError("batches= holds no batch")
