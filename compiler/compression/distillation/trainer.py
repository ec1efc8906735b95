"""The training of a student: the parts of its loss, batch by batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from compiler.compression.distillation.features import Watched, make_projection
from compiler.compression.distillation.losses import regression, relation, response
from compiler.errors import OptionError

# Batches of (inputs, targets); targets may be None.
Batches = Iterable[tuple[Any, Any]]


@dataclass
class Settings:
    """What `distill` was asked for; `projections` are made of the first batch."""

    weights: Mapping[str, float]
    features: Sequence[tuple[str, str]]
    temperature: float
    task: Callable[[Any, Any], Any] | None
    is_logits: bool
    projections: list[Any] = field(default_factory=list)


def train(
    guide: Any,
    net: Any,
    data: Callable[[], Batches],
    settings: Settings,
    epochs: int,
    learning_rate: float,
    make_optimizer: Callable[[Iterable[Any]], Any] | None,
    report: Callable[[str], None],
) -> list[dict[str, float]]:
    """Train `net` after `guide`; the mean of each part of the loss, an epoch. Raises OptionError as `distill` does."""
    import torch

    watched = Watched(guide, [name for name, _ in settings.features], "teacher")
    own = Watched(net, [name for _, name in settings.features], "student")
    history: list[dict[str, float]] = []
    optimizer: Any = None
    with watched, own:
        for epoch in range(epochs):
            net.train()
            totals: dict[str, float] = {}
            count = 0
            for inputs, targets in data():
                parts = _losses(guide, net, inputs, targets, settings, watched, own)
                if optimizer is None:  # the first batch made the projections
                    trained = [*net.parameters(), *(each for p in settings.projections for each in p.parameters())]
                    optimizer = make_optimizer(trained) if make_optimizer else torch.optim.Adam(trained, learning_rate)
                    starts = [group["lr"] for group in optimizer.param_groups]
                loss = sum(settings.weights[name] * value for name, value in parts.items())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                count += 1
                for name, value in parts.items():
                    totals[name] = totals.get(name, 0.0) + float(value.detach())
            if not count:
                raise OptionError("data() gives no batches", "return a new iterable of (inputs, targets) at each call")
            history.append({name: value / count for name, value in totals.items()})
            if make_optimizer is None:
                _decay(optimizer, starts, (epoch + 1) / epochs)
            report(f"epoch {epoch + 1}: " + ", ".join(f"{name} {value:.4g}" for name, value in history[-1].items()))
    return history


def _decay(optimizer: Any, starts: Sequence[float], done: float) -> None:
    """Half a cosine from the first rate to nothing (Loshchilov and Hutter, arXiv:1608.03983)."""
    for group, start in zip(optimizer.param_groups, starts, strict=True):
        group["lr"] = start * (1 + math.cos(math.pi * done)) / 2


def _losses(
    guide: Any, net: Any, inputs: Any, targets: Any, settings: Settings, watched: Watched, own: Watched
) -> dict[str, Any]:
    """Each part of the loss that has a weight, for one batch."""
    import torch

    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    with torch.no_grad():
        wanted = guide(*arguments)
    found = net(*arguments)
    parts: dict[str, Any] = {}
    if settings.weights.get("response"):
        if found.shape != wanted.shape:
            raise OptionError(
                f"outputs of sizes {list(found.shape)} (student) and {list(wanted.shape)} (teacher) do not compare",
                "use a student with the teacher's outputs, or leave out the response",
            )
        parts["response"] = (
            response(found, wanted, settings.temperature) if settings.is_logits else regression(found, wanted)
        )
    if settings.features:
        parts.update(_inner_losses(watched.take(), own.take(), settings))
    if settings.task is not None and settings.weights.get("task"):
        parts["task"] = settings.task(found, targets)
    return parts


def _inner_losses(teacher: Sequence[Any], student: Sequence[Any], settings: Settings) -> dict[str, Any]:
    parts: dict[str, Any] = {}
    pairs = list(zip(student, teacher, strict=True))
    if settings.weights.get("feature"):
        if not settings.projections:
            settings.projections.extend(make_projection(*pair) for pair in pairs)
        parts["feature"] = sum(
            regression(project(own), wanted) for project, (own, wanted) in zip(settings.projections, pairs, strict=True)
        )
    if settings.weights.get("relation"):
        if len(student[0]) < 2:
            raise OptionError("a batch of one example has no relations", "give batches of 2 or more")
        parts["relation"] = sum(relation(own, wanted) for own, wanted in pairs)
    return parts
