"""Pruning, weight sharing, factorization, distillation and a recipe on the nets of `_compression_cases`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

import compiler
import targets
from benchmarks._compression_cases import Case

# Each of these is measured, whatever its accuracy loss.
_ANY_DROP = 0.99


def _options(case: Case) -> dict[str, Any]:
    return {"evaluate": case.evaluate, "max_drop": _ANY_DROP, "threads": 1, **case.options}


def _pruned(case: Case, pattern: str, amount: float, criterion: str) -> Any:
    return compiler.prune(
        case.path, amount, pattern=pattern, criterion=criterion, calibration=case.calibration, **_options(case)
    )


def _blocks(case: Case) -> Any:
    return _pruned(case, f"{targets.get('host').machine.lanes('float32')}x1", 0.5, "magnitude")


@cache
def _digits(name: str) -> tuple[Any, Any]:
    """Return the net of a case that is trained here, and its data."""
    from benchmarks.digits import DigitsCnn, DigitsTransformer, load_digits, train

    data = load_digits()
    return train({"digits-cnn": DigitsCnn, "digits-transformer": DigitsTransformer}[name](), data), data


def _batches(data: Any) -> list[Any]:
    images: Any
    labels: Any
    images, labels = (torch.from_numpy(part) for part in data.train)
    return list(zip(images.split(50), labels.split(50), strict=True))


def _finetune(data: object, epochs: int = 4) -> Callable[[Any], None]:
    def finetune(net: Any) -> None:
        optimizer = torch.optim.Adam(net.parameters(), 1e-3)
        net.train()
        for _ in range(epochs):
            for images, labels in _batches(data):
                optimizer.zero_grad()
                loss: Any = torch.nn.functional.cross_entropy(net(images), labels)
                loss.backward()
                optimizer.step()
        net.eval()

    return finetune


def _example(data: Any) -> tuple[Any]:
    return (torch.from_numpy(data.calibration[0][:50]),)


def _finetuned(case: Case, pattern: str) -> Any:
    net, data = _digits(case.name)
    return compiler.prune(
        copy.deepcopy(net),
        0.5,
        pattern=pattern,
        steps=2,
        finetune=_finetune(data),
        example_inputs=_example(data),
        **_options(case),
    )


def _distilled(case: Case) -> Any:
    """A student with half of the channels, distilled from the whole model."""
    net, data = _digits(case.name)
    small = compiler.prune(
        copy.deepcopy(net), 0.5, finetune=lambda _: None, example_inputs=_example(data), **_options(case)
    )
    options = _options(case)
    return compiler.distill(
        small,
        copy.deepcopy(net),
        _batches(data),
        epochs=8,
        learning_rate=2e-3,
        example_inputs=_example(data),
        **options,
    )


def _recipe(case: Case) -> Any:
    net, data = _digits(case.name)
    return compiler.compress(
        copy.deepcopy(net),
        "prune -> distill -> quantize",
        calibration=case.calibration,
        prune={"finetune": lambda _: None},
        distill={"teacher": copy.deepcopy(net), "batches": _batches(data), "epochs": 8, "learning_rate": 2e-3},
        example_inputs=_example(data),
        **_options(case),
    )


# Techniques by their names in the table; those of the second part train, and so apply to the nets trained here.
STEPS: dict[str, Callable[[Case], Any]] = {
    "prune 2:4, second-order": lambda case: _pruned(case, "2:4", 0.5, "second-order"),
    "prune blocks 50 %": _blocks,
    "prune layers 25 %, influence": lambda case: _pruned(case, "layers", 0.25, "influence"),
    "share weights, 6 bits": lambda case: compiler.share_weights(case.path, 6, **_options(case)),
    "factorize": lambda case: compiler.factorize(case.path, **_options(case)),
}
TRAINED: dict[str, Callable[[Case], Any]] = {
    "prune channels 50 %, fine-tuned": lambda case: _finetuned(case, "channels"),
    "prune channels 50 %, distilled": _distilled,
    "prune -> distill -> quantize": _recipe,
}


def steps_for(case: Case) -> dict[str, Callable[[Case], Any]]:
    """Steps that apply to the case's net."""
    return {**STEPS, **(TRAINED if case.name.startswith("digits-") else {})}
